"""What one tenant's flood does to another's median latency, through the SDK on a server of this machine (contract 31).

    python -m bench.fairness --json [--rounds 15] [--model NAME]

A tenant samples, then trains, one request after another: first alone, then while the process of another tenant keeps
hundreds of long requests of the same kind in flight. The required ratio of the medians is 2. Without --model a tiny
random Llama is served: its steps are so short that what a request costs anyway weighs most.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tinker
from tests.contracts.loops import STEP, TEXT, batch, prompt_of
from tests.live_server import LiveServer, start_server
from tests.tiny_model import save_tiny_model
from tinker import types

from openrl.cli.model_paths import find_model

REQUIRED_RATIO = 2.0
NAME = "served"
FLOOD_SAMPLES = 100
FLOOD_RUNS = 4
FLOOD_STEPS = 20
DATUMS = 16
SHORT = types.SamplingParams(max_tokens=16, stop=[], seed=1)
LONG = types.SamplingParams(max_tokens=200, stop=[])
SETTLE_S = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="NAME or NAME=DIR, as for openrl serve")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print only the result line")
    options = parser.parse_args()
    os.environ["TINKER_TELEMETRY"] = "0"  # read by the SDK
    with tempfile.TemporaryDirectory(prefix="openrl-bench-") as directory:
        root = Path(directory)
        model = find_model(options.model).path if options.model else save_tiny_model(root / "tiny")
        kinds = {kind: measure(kind, model, root / kind, options.rounds) for kind in ("sampling", "training")}
    worst = max(each["ratio"] for each in kinds.values())
    result = {"value": worst, "unit": "median latency in a flood / alone", "required": REQUIRED_RATIO, **kinds}
    print(json.dumps({"benchmark": "fairness", "model": options.model or "tiny", **result, "cores": os.cpu_count()}))


def measure(kind: str, model: Path, data_dir: Path, rounds: int) -> dict[str, float]:
    """One kind of work on a server of its own: nothing of another flood is left there."""
    live = start_server(model, data_dir, name=NAME)
    try:
        service = tinker.ServiceClient(base_url=live.url, api_key=live.other_key)
        if kind == "sampling":
            return compare(live, sampling(service), flood_with_samples, rounds)
        return compare(live, training(service), flood_with_steps, rounds)
    finally:
        live.process.kill()
        live.process.wait()


def sampling(service: tinker.ServiceClient) -> Callable[[], None]:
    """One short sample."""
    sampler = service.create_sampling_client(base_model=NAME).result()

    def sample() -> None:
        sampler.sample(prompt_of(TEXT), 1, SHORT).result()

    return sample


def training(service: tinker.ServiceClient) -> Callable[[], None]:
    """One step: a gradient and an update."""
    run = service.create_lora_training_client(NAME, rank=8).result()
    data = batch(DATUMS)

    def step() -> None:
        for future in (run.forward_backward(data, "cross_entropy"), run.optim_step(STEP)):
            future.result()

    return step


def flood_with_samples(service: tinker.ServiceClient) -> tuple[Callable[[], Sequence[Any]], int]:
    """Requests of four long samples, FLOOD_SAMPLES of them in flight."""
    sampler = service.create_sampling_client(base_model=NAME).result()
    return lambda: [sampler.sample(prompt_of(TEXT), 4, LONG)], FLOOD_SAMPLES


def flood_with_steps(service: tinker.ServiceClient) -> tuple[Callable[[], Sequence[Any]], int]:
    """FLOOD_RUNS runs with FLOOD_STEPS steps (gradient and update) in flight each."""
    data = batch(DATUMS)
    runs = [service.create_lora_training_client(NAME, rank=8).result() for _ in range(FLOOD_RUNS)]

    def turn() -> Sequence[Any]:
        return [each for run in runs for each in (run.forward_backward(data, "cross_entropy"), run.optim_step(STEP))]

    return turn, FLOOD_STEPS


Flood = Callable[[tinker.ServiceClient], tuple[Callable[[], Sequence[Any]], int]]


def keep_flooding(url: str, key: str, flood: Flood) -> None:
    """A process of its own, as a tenant on another machine has; until it is ended."""
    turn, depth = flood(tinker.ServiceClient(base_url=url, api_key=key))
    turns = deque(turn() for _ in range(depth))
    while True:
        for future in turns.popleft():
            future.result()
        turns.append(turn())


def compare(live: LiveServer, action: Callable[[], None], flood: Flood, rounds: int) -> dict[str, float]:
    """Medians of the action alone, and beside the flood."""
    alone_s = median_s(action, rounds)
    process = multiprocessing.get_context("spawn").Process(target=keep_flooding, args=(live.url, live.key, flood))
    process.start()
    time.sleep(SETTLE_S)
    flooded_s = median_s(action, rounds)
    process.kill()
    process.join()
    return {
        "alone_ms": round(alone_s * 1e3, 1),
        "flooded_ms": round(flooded_s * 1e3, 1),
        "ratio": round(flooded_s / alone_s, 2),
    }


def median_s(action: Callable[[], None], rounds: int) -> float:
    """Median seconds of an action after two unmeasured turns."""
    durations: list[float] = []
    for _ in range(rounds + 2):
        started = time.perf_counter()
        action()
        durations.append(time.perf_counter() - started)
    return statistics.median(durations[2:])


if __name__ == "__main__":
    main()
