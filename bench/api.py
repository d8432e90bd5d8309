"""Requests per second and added latency of gateway, store, scheduler and rpc, with engines that do nothing.

    python -m bench.api --json [--seconds 10] [--clients 64]

A request is a whole one: `asample` accepted and durable, dispatched to a worker process, its result stored, and
fetched with `retrieve_future`. The load generator runs on the same machine. The limit in the same run is a bare
uvicorn app that answers the same two calls from memory.

Three loads, all from `--clients` connections with one request in flight each:
- saturated: the next request follows the last result at once. Gives the rate; its latency is clients / rate.
- paced: every client has turns at even distances from a random start, together PACED_RATES requests a second: half of
  the rate that is required, and all of it. The engine takes no time, so the time from submission to result, less that
  of the bare app at the same pace (`added_p50_ms`), is what the server adds. The rates are fixed, so that servers and
  versions compare.
- burst: SIMULTANEOUS samples in flight before the first is fetched.

On a machine with other work every wake-up of a thread may wait for the next tick of the kernel (4 ms), some fifteen
times a request. `server_cpu_us` and `worker_cpu_us`, processor time per request while saturated, then say more.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
import uvloop

from bench.http_load import KeepAliveClient
from openrl.cli.server import ServeOptions, run_server
from openrl.config import Config, GatewayConfig, ModelConfig
from openrl.telemetry.logs import configure_logs

PROMPT_TOKENS = 128
SIMULTANEOUS = 4096
CONNECTIONS = 256
REQUIRED_RATE = 1000
PACED_RATES = (REQUIRED_RATE // 2, REQUIRED_RATE)
"""Latency is measured at these requests/s: at saturation it is clients / rate, whatever the server."""
MODEL_CONFIG = {"architectures": ["Noop"], "vocab_size": 1000, "max_position_embeddings": 4096}


@dataclass(frozen=True, slots=True)
class Server:
    """Where to send requests."""

    port: int
    key: str
    sampler_id: str


@dataclass(frozen=True, slots=True)
class Load:
    """What came out of one stretch of load."""

    num_requests: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int


class Cpu(NamedTuple):
    """Seconds of processor time so far."""

    server: float
    workers: float


def cpu_of(server_pid: int) -> Cpu:
    """Of the server process, and of its children that still run."""
    stats = {int(file.parent.name): _stat(file) for file in Path("/proc").glob("[0-9]*/stat")}
    workers = sum(seconds for parent, seconds in stats.values() if parent == server_pid)
    return Cpu(stats[server_pid][1], workers)


def _stat(file: Path) -> tuple[int, float]:
    """Parent and processor time of a process; (0, 0.0) when it has just ended."""
    try:
        fields = file.read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0.0
    return int(fields[1]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def serve(root: Path) -> None:
    """The child process with the real server and a worker process of no-op engines."""
    model = root / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(MODEL_CONFIG))
    config = Config(
        data_dir=root / "data",
        models=(ModelConfig(name="noop", path=model),),
        gateway=GatewayConfig(port=0),
    )
    command = (sys.executable, "-m", "bench.noop_worker")
    configure_logs("server", "error")  # as `openrl serve` does; otherwise every line is written
    uvloop.run(run_server(config, ServeOptions(root / "ready.json", "error", command)))


def serve_bare(listener: socket.socket) -> None:
    """The child process with the floor: uvicorn answering both calls from memory."""

    async def app(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
        assert scope["type"] == "http"
        while (await receive()).get("more_body"):
            pass
        body = b'{"request_id": "x", "sample_sequence_ids": ["x:0"]}'
        headers = [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    config = uvicorn.Config(app, http="httptools", loop="uvloop", lifespan="off", access_log=False, log_level="error")
    uvloop.run(uvicorn.Server(config).serve(sockets=[listener]))


async def open_sampler(port: int, key: str) -> Server:
    """A session and a sampler of the base model."""
    client = await KeepAliveClient.connect("127.0.0.1", port, key)
    session = json.loads((await client.post("/api/v1/create_session", b'{"tags": [], "sdk_version": "0.38.0"}')).body)
    body = {"session_id": session["session_id"], "sampling_session_seq_id": 0, "base_model": "noop"}
    sampler = json.loads((await client.post("/api/v1/create_sampling_session", json.dumps(body).encode())).body)
    await client.close()
    return Server(port, key, sampler["sampling_session_id"])


def sample_body(server: Server, seq_id: int) -> bytes:
    """The JSON of one `asample`, as the SDK writes it."""
    body = {
        "num_samples": 1,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": list(range(2, 2 + PROMPT_TOKENS))}]},
        "sampling_params": {"max_tokens": 1, "temperature": 1.0, "top_k": -1, "top_p": 1.0},
        "sampling_session_id": server.sampler_id,
        "seq_id": seq_id,
        "prompt_logprobs": False,
        "topk_prompt_logprobs": 0,
        "type": "sample",
    }
    return json.dumps(body).encode()


async def submit(client: KeepAliveClient, server: Server, seq_id: int) -> bytes:
    """Send one sample; returns the body that polls for it."""
    reply = await client.post("/api/v1/asample", sample_body(server, seq_id))
    if reply.status != 200:
        raise RuntimeError(f"asample answered {reply.status}: {reply.body[:200]!r}")
    request_id = json.loads(reply.body)["request_id"]
    return b'{"request_id": "%s", "allow_metadata_only": true}' % request_id.encode()


async def fetch(client: KeepAliveClient, poll: bytes) -> None:
    """Poll until the result is there."""
    while (reply := await client.post("/api/v1/retrieve_future", poll)).status == 408:
        pass
    if reply.status != 200 or b'"error"' in reply.body[:20]:
        raise RuntimeError(f"retrieve_future answered {reply.status}: {reply.body[:200]!r}")


async def steady_load(
    server: Server, num_clients: int, seconds: float, first_seq: int, requests_per_s: float | None = None
) -> Load:
    """Each client sends its next request when it has the last result, or at its share of `requests_per_s`."""
    latencies: list[float] = []
    errors: list[str] = []
    numbers = iter(range(first_seq, first_seq + 10_000_000))
    end = time.perf_counter() + seconds
    pause_s = num_clients / requests_per_s if requests_per_s else 0.0

    async def client_loop() -> None:
        client = await KeepAliveClient.connect("127.0.0.1", server.port, server.key)
        turn = time.perf_counter() + random.random() * pause_s
        while turn < end and time.perf_counter() < end:
            await asyncio.sleep(turn - time.perf_counter())
            turn += pause_s
            start = time.perf_counter()
            try:
                await fetch(client, await submit(client, server, next(numbers)))
            except RuntimeError as error:
                errors.append(str(error))
                continue
            latencies.append(time.perf_counter() - start)
        await client.close()

    start = time.perf_counter()
    await asyncio.gather(*(client_loop() for _ in range(num_clients)))
    elapsed = time.perf_counter() - start
    cuts = statistics.quantiles(latencies, n=100)
    return Load(len(latencies), len(latencies) / elapsed, cuts[49] * 1e3, cuts[98] * 1e3, len(errors))


async def burst(server: Server, first_seq: int) -> tuple[float, int]:
    """SIMULTANEOUS samples in flight before any is fetched; seconds until all are there, and errors."""
    clients = [await KeepAliveClient.connect("127.0.0.1", server.port, server.key) for _ in range(CONNECTIONS)]
    per_client = SIMULTANEOUS // CONNECTIONS
    errors: list[str] = []

    async def client_turn(index: int) -> None:
        seqs = range(first_seq + index * per_client, first_seq + (index + 1) * per_client)
        try:
            polls = [await submit(clients[index], server, seq) for seq in seqs]
            for poll in polls:
                await fetch(clients[index], poll)
        except RuntimeError as error:
            errors.append(str(error))

    start = time.perf_counter()
    await asyncio.gather(*(client_turn(index) for index in range(CONNECTIONS)))
    elapsed = time.perf_counter() - start
    await asyncio.gather(*(client.close() for client in clients))
    return elapsed, len(errors)


def wait_for(file: Path) -> None:
    """Return when the file is there."""
    while not file.exists():
        time.sleep(0.05)


async def measure(root: Path, server_pid: int, bare_port: int, num_clients: int, seconds: float) -> dict[str, Any]:
    """All loads in turn, against the server and against the floor."""
    await asyncio.to_thread(wait_for, root / "ready.json")
    ready = json.loads((root / "ready.json").read_text())
    server = await open_sampler(int(ready["url"].rsplit(":", 1)[1]), ready["key"])
    await steady_load(server, num_clients, 2.0, 1)
    before = cpu_of(server_pid)
    full = await steady_load(server, num_clients, seconds, 10_000_000)
    after = cpu_of(server_pid)
    paced = [await steady_load(server, num_clients, seconds, 15_000_000 + rate * 1000, rate) for rate in PACED_RATES]
    single = await steady_load(server, 1, 2.0, 20_000_000)
    burst_s, burst_errors = await burst(server, 30_000_000)
    bare = Server(bare_port, "tml-x", "x")
    floor = await steady_load(bare, num_clients, 2.0, 1)
    bare_paced = [await steady_load(bare, num_clients, seconds / 2, 1, rate) for rate in PACED_RATES]
    return {
        "benchmark": "api",
        "value": round(full.requests_per_s),
        "unit": "requests/s (asample + result)",
        "required": REQUIRED_RATE,
        "limit": round(floor.requests_per_s),
        "limit_is": "a bare uvicorn app answering the same calls from memory",
        "ratio_to_limit": round(full.requests_per_s / floor.requests_per_s, 3),
        "clients": num_clients,
        "server_cpu_us": round((after.server - before.server) / full.num_requests * 1e6),
        "worker_cpu_us": round((after.workers - before.workers) / full.num_requests * 1e6),
        "saturated_p50_ms": round(full.p50_ms, 2),
        "saturated_p99_ms": round(full.p99_ms, 2),
        "paced": [
            {
                "offered": rate,
                "served": round(load.requests_per_s),
                "p50_ms": round(load.p50_ms, 2),
                "p99_ms": round(load.p99_ms, 2),
                "added_p50_ms": round(load.p50_ms - bare_load.p50_ms, 2),
            }
            for rate, load, bare_load in zip(PACED_RATES, paced, bare_paced, strict=True)
        ],
        "required_added_p50_ms": 10.0,
        "p50_ms_one_client": round(single.p50_ms, 2),
        "errors": full.errors + sum(load.errors for load in paced) + single.errors,
        "burst": {"samples": SIMULTANEOUS, "seconds": round(burst_s, 2), "errors": burst_errors},
        "cores": os.cpu_count(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--json", action="store_true", help="print only the result line")
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="openrl-bench-") as directory,
        socket.create_server(("127.0.0.1", 0)) as bare,
    ):
        root = Path(directory)
        children = [
            spawn.Process(target=serve, args=(root,)),
            spawn.Process(target=serve_bare, args=(bare,), daemon=True),
        ]
        for child in children:
            child.start()
        server_pid = children[0].pid
        assert server_pid is not None
        try:
            result = uvloop.run(measure(root, server_pid, bare.getsockname()[1], options.clients, options.seconds))
        finally:
            for child in children:
                child.terminate()
                child.join(20)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
