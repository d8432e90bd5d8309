"""Runs the benchmarks of the engines one after another, each in a process and within a time of its own.

    python -m bench.suite [--model qwen3-4b] [--only train sample] [--budget-s 540] [--tiny] [--out DIR]

One that fails or takes too long does not end the others. Results are recorded in bench/results; with `--out` the lines
of this run also go to DIR/suite.jsonl. `OPENRL_BENCH_COMMIT` names the commit where the working tree has no history.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

LIMITS_S = {  # of one benchmark on one GPU, compilation included; the short ones first
    "optim": 60,
    "handoff": 90,
    "mismatch": 120,
    "train": 400,
    "sample": 240,
    "startup": 180,
    "mux": 400,
}
JSON_ONLY = ("mux",)  # has no --record, --tiny and --repeats


def main(argv: Sequence[str] | None = None) -> int:
    """The number of benchmarks without a result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen3-4b")
    parser.add_argument("--only", nargs="+", choices=LIMITS_S, default=list(LIMITS_S), metavar="BENCHMARK")
    parser.add_argument("--budget-s", type=float, default=540.0)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    end = time.monotonic() + options.budget_s
    missing = 0
    for name in LIMITS_S:
        if name in options.only:
            line = run(name, options, min(LIMITS_S[name], end - time.monotonic()))
            missing += line is None
            if line is not None and options.out is not None:
                options.out.mkdir(parents=True, exist_ok=True)
                with (options.out / "suite.jsonl").open("a") as file:
                    file.write(line + "\n")
    print(json.dumps({"benchmark": "suite", "without_result": missing}))
    return missing


def run(name: str, options: argparse.Namespace, limit_s: float) -> str | None:
    """The JSON line of one benchmark, also shown; None where there is none."""
    if limit_s <= 0:
        print(f"{name}: no time left")
        return None
    model = "tiny" if options.tiny and name in JSON_ONLY else options.model
    command = [sys.executable, "-m", f"bench.{name}", "--model", model]
    if name in JSON_ONLY:
        command += ["--small", "--seconds", "20", "--jobs", "1"] if options.tiny else ["--seconds", "60"]
    else:
        command += ["--tiny", "--repeats", "1"] if options.tiny else ["--record"]
    print("$", *command[1:], flush=True)
    try:
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        print((error.stdout or b"").decode(), f"{name}: over {limit_s:.0f} s", flush=True)
        return None
    print(done.stdout, flush=True)
    lines = done.stdout.splitlines()
    return lines[-1] if done.returncode == 0 and lines else None


if __name__ == "__main__":
    sys.exit(main())
