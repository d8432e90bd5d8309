"""Commits per second of the store on SQLite and on PostgreSQL, one after the other on the same disk.

    python -m bench.store --json [--seconds 5] [--callers 64] [--url postgresql://…]

Each caller enqueues one request after the other, with a payload of 2 kB; a caller's next request waits for the commit
of its last. Then one caller alone. Without `--url` a PostgreSQL server is started for the run, on this machine: it
takes its processor time from the same cores.
"""

import argparse
import asyncio
import json
import resource
import statistics
import tempfile
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.postgres import new_database, start_postgres

from openrl.store.base import RequestRow, Store
from openrl.store.blobs import DirectoryBlobs
from openrl.store.sql import create_store

PAYLOAD = bytes(2048)


@dataclass(frozen=True, slots=True)
class Rate:
    """What came out of one store."""

    commits_per_s: float
    p50_ms: float
    p99_ms: float
    alone_p50_ms: float
    cpu_us: float  # of this process per request, while all callers enqueue


async def measure(url: str, root: Path, seconds: float, num_callers: int) -> Rate:
    """The rate of a fresh store."""
    blobs = DirectoryBlobs(root / uuid.uuid4().hex)
    store = await create_store(url, blobs)
    try:
        await _run(store, 0.5, num_callers)
        cpu = _cpu_s()
        started = time.perf_counter()
        latencies = await _run(store, seconds, num_callers)
        elapsed = time.perf_counter() - started
        cpu = _cpu_s() - cpu
        alone = await _run(store, seconds / 4, 1)
    finally:
        await store.close()
        blobs.close()
    quantiles = statistics.quantiles(latencies, n=100)
    return Rate(
        commits_per_s=round(len(latencies) / elapsed),
        p50_ms=round(quantiles[49] * 1000, 2),
        p99_ms=round(quantiles[98] * 1000, 2),
        alone_p50_ms=round(statistics.median(alone) * 1000, 2),
        cpu_us=round(cpu / len(latencies) * 1e6),
    )


async def _run(store: Store, seconds: float, num_callers: int) -> list[float]:
    latencies: list[float] = []
    until = time.perf_counter() + seconds

    async def call() -> None:
        run_id = uuid.uuid4().hex
        seq_id = 0
        while (started := time.perf_counter()) < until:
            seq_id += 1
            key = f"run:{run_id}:{seq_id}"
            row = RequestRow(uuid.uuid4().hex, "tenant", "session", "forward_backward", key, seq_id, 1.0, run_id)
            await store.enqueue(row, PAYLOAD)
            latencies.append(time.perf_counter() - started)

    await asyncio.gather(*(call() for _ in range(num_callers)))
    return latencies


def _middle(rates: list[Rate]) -> Rate:
    return sorted(rates, key=lambda rate: rate.commits_per_s)[len(rates) // 2]


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print both rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one line of JSON last")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--url", help="a database on PostgreSQL to use, which should be empty")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        server = None if options.url else start_postgres(root)
        try:
            rates: dict[str, list[Rate]] = {"sqlite": [], "postgres": []}
            for repeat in range(options.repeats):
                postgres_url = options.url if server is None else new_database(server)
                for name, url in (("sqlite", f"sqlite:///{root}/store{repeat}.db"), ("postgres", postgres_url)):
                    rate = asyncio.run(measure(url, root, options.seconds, options.callers))
                    rates[name].append(rate)
                    print(f"{name:9} {rate}")
        finally:
            if server is not None:
                server.stop()
    if options.json:
        print(json.dumps({name: asdict(_middle(each)) for name, each in rates.items()}))


if __name__ == "__main__":
    main()
