"""Runs the parts of a peer benchmark, each in a process of its own, and keeps what succeeded."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TAIL = 2000  # characters of a failed part's output that are kept


def split_options(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The options of peer benchmarks, and the arguments that are left for bench.records."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--out", type=Path, default=Path("/tmp/openrl-peers"), help="results, part by part")
    parser.add_argument("--part", help="run only this, in this process")
    parser.add_argument("--limit-s", type=float, default=200.0, help="for one part")
    return parser.parse_known_args(argv)


class Parts:
    """Results of parts, as files that outlive a part that fails."""

    def __init__(self, module: str, out: Path, arguments: Sequence[str], limit_s: float) -> None:
        self._command = [sys.executable, "-m", module, *arguments, "--out", str(out)]
        self._out = out
        self._limit_s = limit_s
        self.failed: dict[str, str] = {}
        out.mkdir(parents=True, exist_ok=True)

    def run(self, names: Sequence[str]) -> dict[str, Any]:
        """Run these parts side by side; returns the results of those that succeeded."""
        started = time.monotonic()
        processes = {name: self._start(name) for name in names}
        for name, process in processes.items():
            try:
                code = process.wait(max(1.0, started + self._limit_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # vLLM's engine is a child of the part
                process.wait()
                code = -1
            if code != 0 or not result_file(self._out, name).exists():
                self.failed[name] = (self._out / f"{name}.log").read_text(errors="replace")[-TAIL:]
                print(f"{name} failed ({code}): {self.failed[name]}", file=sys.stderr, flush=True)
        print(f"{', '.join(names)}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        return {n: json.loads(result_file(self._out, n).read_text()) for n in names if n not in self.failed}

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        result_file(self._out, name).unlink(missing_ok=True)
        with (self._out / f"{name}.log").open("wb") as log:
            command = [*self._command, "--part", name]
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def result_file(out: Path, name: str) -> Path:
    """Where a part leaves its result."""
    return out / f"{name}.json"


def keep(out: Path, name: str, result: Any) -> None:
    """Leave the result of a part."""
    out.mkdir(parents=True, exist_ok=True)
    result_file(out, name).write_text(json.dumps(result))
