"""Each optional flag of the client, on against off: the real SDK on loopback, engines that do nothing.

    python -m bench.flags --json [--repeats 5] [--flag NAME]

For every flag two servers run that differ in it alone; the same work goes to both in turn, and medians count. `ratio`
is seconds with the flag over seconds without: below 1 it is faster; `cpu_ratio` the same of processor time, client and
server together, which other work on the machine moves less. Work of a flag:
- sample_use_retrieve_futures: NUM_SAMPLES samples in flight at once; `one_at_a_time` has a single one in flight.
- sample_join_sampling_session: the first sample of each of NUM_COPIES copies of a client.
- sample_cancel_enabled: one sample behind NUM_ABANDONED that nobody waits for, 10 ms of engine each.
- parallel_fwdbwd_chunks: one forward_backward of many chunks.
- proto_compress_fwdbwd: the same, of long datums; `bytes` are those of the bodies.
- complete_metadata: results of more than a megabyte, many at once.
"""

import argparse
import json
import multiprocessing
import os
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tinker
import uvloop
import zstandard
from tinker import types
from tinker.proto.request_conv import forward_backward_request_to_proto

from bench.api import MODEL_CONFIG, cpu_of, wait_for
from openrl.cli.server import ServeOptions, run_server
from openrl.config import ClientConfig, Config, GatewayConfig, ModelConfig
from openrl.telemetry.logs import configure_logs

NUM_SAMPLES = 2000
NUM_SINGLE = 50
NUM_COPIES = 10
NUM_ABANDONED = 200
DATUM_TOKENS = 1024
PROMPT = types.ModelInput.from_ints(list(range(2, 130)))
ONE_TOKEN = types.SamplingParams(max_tokens=1)
LINKS_MBIT = (100, 1000)
"""Links whose transfer time is added to the seconds on loopback, to say where compression pays."""
SOURCE = Path(__file__).parent.parent / "src"


class Client(NamedTuple):
    """One server's."""

    service: tinker.ServiceClient
    key: str
    server_pid: int


Work = Callable[[Client], float]
"""Does the work once; returns its seconds."""


def serve(root: Path, client: ClientConfig, worker: str) -> None:
    """The child process with a server whose worker is a module of this folder."""
    model = root / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(MODEL_CONFIG | {"vocab_size": 100_000}))
    models = (ModelConfig(name="noop", path=model),)
    config = Config(data_dir=root / "data", models=models, gateway=GatewayConfig(port=0), client=client)
    configure_logs("server", "error")
    uvloop.run(run_server(config, ServeOptions(root / "ready.json", "error", (sys.executable, "-m", worker))))


@contextmanager
def running(flag: str, is_on: bool, settings: dict[str, Any], worker: str) -> Generator[Client, None, None]:
    """A server where the flag is on or off, and a client of it."""
    with tempfile.TemporaryDirectory(prefix="openrl-bench-") as directory:
        root = Path(directory)
        client = ClientConfig(**{flag: is_on}, **settings)
        child = multiprocessing.get_context("spawn").Process(target=serve, args=(root, client, worker))
        child.start()
        try:
            wait_for(root / "ready.json")
            ready = json.loads((root / "ready.json").read_text())
            with tinker.ServiceClient(base_url=ready["url"], api_key=ready["key"]) as service:
                assert child.pid is not None
                yield Client(service, ready["key"], child.pid)
        finally:
            child.terminate()
            child.join(20)


def compare(flag: str, repeats: int, *works: Work, worker: str = "bench.noop_worker", **settings: Any) -> list[Any]:
    """Median seconds with the flag, and without, of each work; after one repeat that does not count."""
    with running(flag, True, settings, worker) as on, running(flag, False, settings, worker) as off:
        spent = [[spend(work, on) + spend(work, off) for work in works] for _ in range(repeats + 1)][1:]
    found: list[Any] = []
    for of_work in zip(*spent, strict=True):
        on_s, on_cpu_s, off_s, off_cpu_s = (statistics.median(each) for each in zip(*of_work, strict=True))
        seconds = {"on_s": on_s, "off_s": off_s, "ratio": on_s / off_s}
        cpu = {"on_cpu_s": on_cpu_s, "off_cpu_s": off_cpu_s, "cpu_ratio": on_cpu_s / off_cpu_s}
        found.append({name: round(value, 4) for name, value in (seconds | cpu).items()})
    return found


def spend(work: Work, client: Client) -> tuple[float, float]:
    """Seconds of one turn of work, and processor seconds of client and server together."""
    before = time.process_time() + cpu_of(client.server_pid).server
    seconds = work(client)
    return seconds, time.process_time() + cpu_of(client.server_pid).server - before


def sampler_of(client: Client) -> tinker.SamplingClient:
    """A fresh sampling session."""
    return client.service.create_sampling_client(base_model="noop").result()


def sample_all(client: Client) -> float:
    """NUM_SAMPLES at once."""
    sampler = sampler_of(client)
    start = time.perf_counter()
    futures = [sampler.sample(PROMPT, 1, ONE_TOKEN) for _ in range(NUM_SAMPLES)]
    for future in futures:
        future.result()
    return time.perf_counter() - start


def sample_singly(client: Client) -> float:
    """NUM_SINGLE, each after the one before."""
    sampler = sampler_of(client)
    start = time.perf_counter()
    for _ in range(NUM_SINGLE):
        sampler.sample(PROMPT, 1, ONE_TOKEN).result()
    return time.perf_counter() - start


def first_samples_of_copies(client: Client) -> float:
    """The first sample of each copy of a client."""
    sampler = sampler_of(client)
    os.environ["TINKER_API_KEY"] = client.key  # read by the SDK alone
    copies = [pickle.loads(pickle.dumps(sampler)) for _ in range(NUM_COPIES)]
    start = time.perf_counter()
    for future in [copy.sample(PROMPT, 1, ONE_TOKEN) for copy in copies]:
        future.result()
    return time.perf_counter() - start


def sample_behind_abandoned(client: Client) -> float:
    """One sample after NUM_ABANDONED that nobody waits for."""
    sampler = sampler_of(client)
    sampler.sample(PROMPT, 1, ONE_TOKEN).result()
    abandoned = [sampler.sample(PROMPT, 1, ONE_TOKEN) for _ in range(NUM_ABANDONED)]
    abandoned[0].result()
    for future in abandoned:
        future.future().cancel()
    start = time.perf_counter()
    sampler.sample(PROMPT, 1, ONE_TOKEN).result()
    return time.perf_counter() - start


def rl_datums(num: int, num_tokens: int) -> list[types.Datum]:
    """As a reinforcement learning loop sends them: groups of 8 with one prompt; the words of this project as tokens."""
    words = " ".join(path.read_text() for path in sorted(SOURCE.rglob("*.py"))).split(" ")
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokens = np.array([vocabulary[word] for word in words], np.int64) % 100_000
    rng = np.random.default_rng(1)
    data: list[types.Datum] = []
    for i in range(num):
        prompt = np.roll(tokens, -997 * (i // 8))[: num_tokens // 2]
        answer = np.roll(tokens, rng.integers(len(tokens)))[: num_tokens // 2 + 1]
        sequence = np.concatenate((prompt, answer))
        is_answer = np.arange(num_tokens) >= num_tokens // 2 - 1
        inputs = {
            "target_tokens": sequence[1:],
            "logprobs": (np.log(rng.beta(3, 1, num_tokens)) * is_answer).astype(np.float32),
            "advantages": (rng.normal() * is_answer).astype(np.float32),
        }
        data.append(types.Datum(model_input=types.ModelInput.from_ints(sequence[:-1].tolist()), loss_fn_inputs=inputs))  # pyright: ignore[reportArgumentType]
    return data


def forward_backward(data: list[types.Datum]) -> Work:
    """One call with all datums, in as many chunks as the server asks for."""
    runs: dict[str, tinker.TrainingClient] = {}

    def work(client: Client) -> float:
        if client.key not in runs:
            runs[client.key] = client.service.create_lora_training_client(base_model="noop", rank=8).result()
        start = time.perf_counter()
        runs[client.key].forward_backward(data, "importance_sampling").result()
        return time.perf_counter() - start

    return work


def body_bytes(data: Sequence[types.Datum]) -> tuple[int, int]:
    """Of one forward_backward: compressed as the SDK does, and plain."""
    given = types.ForwardBackwardInput(data=list(data), loss_fn="importance_sampling")
    request = types.ForwardBackwardRequest(forward_backward_input=given, model_id="x", seq_id=1)
    body = forward_backward_request_to_proto(request).SerializeToString()
    return len(zstandard.ZstdCompressor().compress(body)), len(body)


def compare_compression(repeats: int) -> list[Any]:
    """Also what it does on slower links."""
    data = rl_datums(256, DATUM_TOKENS)
    [found] = compare("proto_compress_fwdbwd", repeats, forward_backward(data))
    packed, plain = body_bytes(data)
    ratios = {
        f"ratio_at_{mbit}_mbit": round(
            (found["on_s"] + packed / mbit / 125e3) / (found["off_s"] + plain / mbit / 125e3), 3
        )
        for mbit in LINKS_MBIT
    }
    return [found | {"on_bytes": packed, "off_bytes": plain} | ratios]


def compare_announcements(repeats: int) -> list[Any]:
    """Results of 1.3 MB each: logprobs of 80 long datums, four chunks at once."""
    work = forward_backward(rl_datums(320, 4000))
    return compare("complete_metadata", repeats, work, fwdbwd_max_chunk_len=80, fwdbwd_max_chunk_bytes_count=2**24)


COMPARISONS: dict[str, Callable[[int], list[Any]]] = {
    "sample_use_retrieve_futures": lambda n: compare("sample_use_retrieve_futures", n, sample_all, sample_singly),
    "sample_join_sampling_session": lambda n: compare("sample_join_sampling_session", n, first_samples_of_copies),
    "sample_cancel_enabled": lambda n: compare(
        "sample_cancel_enabled", n, sample_behind_abandoned, worker="bench.slow_worker"
    ),
    "parallel_fwdbwd_chunks": lambda n: compare(
        "parallel_fwdbwd_chunks", n, forward_backward(rl_datums(64, 256)), fwdbwd_max_chunk_len=4
    ),
    "proto_compress_fwdbwd": compare_compression,
    "complete_metadata": compare_announcements,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--flag", choices=list(COMPARISONS), help="this one only")
    parser.add_argument("--json", action="store_true", help="print only the result line")
    options = parser.parse_args()
    os.environ["TINKER_TELEMETRY"] = "0"  # read by the SDK alone
    result: dict[str, Any] = {"benchmark": "flags", "samples": NUM_SAMPLES, "cores": os.cpu_count()}
    for flag in [options.flag] if options.flag else COMPARISONS:
        found = COMPARISONS[flag](options.repeats)
        result[flag] = found[0] | ({"one_at_a_time": found[1]} if found[1:] else {})
        if not options.json:
            print(flag, json.dumps(result[flag]), flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
