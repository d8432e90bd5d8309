"""What every benchmark of the engines prints and keeps: one JSON line with device and versions.

`--record` appends the line to bench/results/BENCHMARK.jsonl; `python -m bench.report` (make bench-report) shows the
history. Limits and required values are those of one H100, so other devices have none.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench.models import SHAPES

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Part:
    """One workload's figure. `ratio`: of the limit that was reached, 1 at best."""

    workload: str
    value: float
    unit: str
    limit: float | None = None
    ratio: float | None = None
    required: float | None = None
    details: dict[str, Any] = field(default_factory=dict[str, Any])


def rate_part(workload: str, rate: float, limit: float, required: float | None = None, **details: Any) -> Part:
    """Tokens/s against a limit of the H100."""
    if not torch.cuda.is_available():
        return Part(workload, round(rate, 1), "tok/s", details=details)
    return Part(workload, round(rate, 1), "tok/s", round(limit, 1), round(rate / limit, 3), required, details)


def time_part(workload: str, seconds: float, limit_s: float, required_ms: float, **details: Any) -> Part:
    """Milliseconds against a limit of the H100."""
    value = round(1e3 * seconds, 3)
    if not torch.cuda.is_available():
        return Part(workload, value, "ms", details=details)
    return Part(workload, value, "ms", round(1e3 * limit_s, 3), round(limit_s / seconds, 3), required_ms, details)


def options_of(
    description: str | None,
    workloads: Sequence[str],
    argv: Sequence[str] | None,
    add_options: Callable[[argparse.ArgumentParser], None] = lambda _: None,
) -> argparse.Namespace:
    """The options that all these benchmarks have and those added; `options.workloads` are those chosen, in order."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="qwen3-4b")
    parser.add_argument("--workloads", nargs="+", choices=workloads, default=list(workloads), metavar="WORKLOAD")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a model and workloads for a CPU: shows that it runs")
    parser.add_argument("--record", action="store_true", help="append the result to bench/results")
    parser.add_argument("--json", action="store_true", help="print only the result line")
    add_options(parser)
    options = parser.parse_args(argv)
    options.workloads = [workload for workload in workloads if workload in options.workloads]
    return options


def finish(
    benchmark: str,
    parts: Sequence[Part],
    twin: Any,
    options: argparse.Namespace,
    packages: Sequence[str] = ("torch", "transformers"),
) -> dict[str, Any]:
    """Print the result, its first workload's figure at the top, and keep it where asked to."""
    first = parts[0]
    result: dict[str, Any] = {
        "benchmark": benchmark,
        "model": options.model + (" (tiny)" if options.tiny else ""),
        **asdict(first),
        "twin": twin,
        "parts": [asdict(part) for part in parts],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu x {torch.get_num_threads()}",
        "versions": {name: _version(name) for name in packages},
        "commit": _commit(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if not options.json:
        for part in parts:
            print(f"{part.workload:20} {part.value:12,} {part.unit:8} limit {part.limit} ratio {part.ratio}")
    if options.record:
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / f"{benchmark}.jsonl").open("a") as file:
            file.write(json.dumps(result) + "\n")
    print(json.dumps(result))
    return result


def timed(action: Callable[[], object]) -> float:
    """Seconds until the device has done it."""
    synchronize()
    started = time.perf_counter()
    action()
    synchronize()
    return time.perf_counter() - started


def medians(actions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each; they take turns, after one turn that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(repeats + 1):
        for name, action in actions.items():
            taken = timed(action)
            if turn:
                seconds[name].append(taken)
    return {name: statistics.median(each) for name, each in seconds.items()}


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_gib() -> float | None:
    """Most device memory held since the last call."""
    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return round(peak, 2)


def _version(name: str) -> str | None:
    """Of a package; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the working tree, or as OPENRL_BENCH_COMMIT says where it is a copy without history; None if neither tells."""
    if "OPENRL_BENCH_COMMIT" in os.environ:
        return os.environ["OPENRL_BENCH_COMMIT"]
    if shutil.which("git") is None:
        return None
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout.strip() or None
