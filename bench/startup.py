"""From the start of `openrl serve` to readiness, with the compile cache cold and warm: seconds.

    python -m bench.startup --json [--model qwen3-4b] [--tiny] [--record]

warm   the data directory has the kernels of an earlier start
cold   the first start of a data directory
The model has random weights and lies on the disk, in the page cache after it was written. The twin is a process that
imports transformers and loads the same directory to the device: no engine, no warm-up, no HTTP.
"""

import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.custom_loss import start
from bench.random_models import save_random_model
from bench.records import Part, finish, options_of

WORKLOADS = ("warm", "cold")
REQUIRED_S = 20.0
LIMIT_S = 8.0  # the stretch of the requirement: reading and copying 8 GB takes about one second of it
STOP_TIMEOUT_S = 60.0
TWIN = """
import sys, torch, transformers
device = "cuda" if torch.cuda.is_available() else "cpu"
transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto", device_map=device)
if device == "cuda":
    torch.cuda.synchronize()
"""


def start_s(model: Path, root: Path) -> float:
    """Seconds until a server over this data directory is ready; it is stopped then."""
    (root / "ready.json").unlink(missing_ok=True)
    started = time.perf_counter()
    process, _ = start(model, root)
    seconds = time.perf_counter() - started
    process.send_signal(signal.SIGTERM)
    process.wait(STOP_TIMEOUT_S)
    return seconds


def twin_s(model: Path) -> float:
    """Seconds of the twin process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", TWIN, str(model)], check=True, capture_output=True)
    return time.perf_counter() - started


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = options_of(__doc__, WORKLOADS, argv)
    with tempfile.TemporaryDirectory(prefix="openrl-bench-") as directory:
        root = Path(directory)
        model = save_random_model("tiny" if options.tiny else options.model, root / "model")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        cold = start_s(model, root)
        warm = [start_s(model, root) for _ in range(options.repeats)]
        twin = [twin_s(model) for _ in range(options.repeats)]
        cache = root / "data" / "compiled"
        cached_bytes = sum(each.stat().st_size for each in cache.rglob("*") if each.is_file()) if cache.exists() else 0
        shutil.rmtree(root / "data")
    seconds = {"warm": statistics.median(warm), "cold": cold}
    parts = [_part(name, seconds[name], {"compile_cache_bytes": cached_bytes}) for name in options.workloads]
    return finish("startup", parts, {"load_s": round(statistics.median(twin), 2)}, options)


def _part(name: str, seconds: float, details: dict[str, Any]) -> Part:
    value = round(seconds, 2)
    if not torch.cuda.is_available():
        return Part(name, value, "s", details=details)
    required = REQUIRED_S if name == "warm" else None
    return Part(name, value, "s", LIMIT_S, round(LIMIT_S / seconds, 3), required, details)


if __name__ == "__main__":
    main()
