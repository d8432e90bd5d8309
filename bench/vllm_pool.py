"""Our sampling engine over a real vLLM server on a GPU: exactness beside the built-in engine, adapters, speed.

    python -m bench.vllm_pool [--model qwen3-0.6b] [--out DIR] [--site DIR] [--limit-s 420]
    python -m bench.vllm_pool --double       # on a CPU, with the test double: tries the script itself

--site: a directory with vLLM 0.26 and its wheels, for the server's process alone. Beside what `import vllm` needs, its
HTTP server needs EXTRA_WHEELS. The model has random weights; adapters have rank 32. Every check runs whatever the
others did. The last line is JSON: `failed` names the checks that did not hold; OUT/server.log is vLLM's.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import torch

from bench.vllm_checks import Checks
from bench.vllm_scene import Scene, adapters_of, save_model

EXTRA_WHEELS = (
    "prometheus-fastapi-instrumentator",
    "model-hosting-container-standards",
    "jmespath",
    "watchfiles",
    "uvicorn",
)
CHECKS = (
    "greedy",
    "tempered",
    "cut",
    "prompt",
    "seeds",
    "stops",
    "adapter_loading",
    "lost_adapter",
    "too_large_rank",
    "cancelling",
    "speed",
)
FLAGS: dict[str, object] = {
    "served-model-name": "base",
    "host": "127.0.0.1",
    "dtype": "bfloat16",
    "max-model-len": 4096,
    "gpu-memory-utilization": 0.45,
    "logprobs-mode": "processed_logprobs",
    "max-logprobs": 64,
    "max-loras": 8,
    "max-lora-rank": 32,
    "max-cpu-loras": 16,
    "attention-backend": "FLASH_ATTN",
}
ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "PYTHONUNBUFFERED": "1",
}


class Server:
    """vLLM, or the double, in a process group of its own."""

    def __init__(self, options: argparse.Namespace, model: Path, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        flags = {"model": model, "port": port, **FLAGS}
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--enable-lora", "--enable-prompt-tokens-details"]
        command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        if options.double:
            command = [sys.executable, "-m", "tests.vllm_server", str(model), str(port)]
        env = {**os.environ, **ENVIRONMENT}
        if options.site is not None:
            env["PYTHONPATH"] = os.pathsep.join([str(options.site), *filter(None, [env.get("PYTHONPATH")])])
        with log.open("wb") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, env=env, start_new_session=True)

    def wait(self, limit_s: float) -> float:
        """Seconds until it answers; raises RuntimeError with the end of its log where it does not."""
        started = time.monotonic()
        while time.monotonic() - started < limit_s and self._process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=5.0).status_code == 200:
                    return time.monotonic() - started
            time.sleep(1.0)
        state = "still starts" if self._process.poll() is None else f"ended with {self._process.returncode}"
        raise RuntimeError(f"the server {state} after {time.monotonic() - started:.0f} s; its log ends:\n{self.tail()}")

    def tail(self, characters: int = 6000) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-characters:]

    def stop(self) -> None:
        """With everything it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def run(options: argparse.Namespace, report: dict[str, Any]) -> None:
    """Fill in the report; whatever breaks leaves in it what is there so far."""
    started = time.monotonic()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    model_dir = save_model(options.model, out / "model", tiny=options.double)
    adapters = adapters_of(model_dir)
    # Memory of the device that is given back while the server measures it would make the server fail.
    server = Server(options, model_dir, out / "server.log")
    scene = None
    try:
        report["start_s"] = round(server.wait(options.start_s), 1)
        report["server"] = [model["id"] for model in httpx.get(f"{server.url}/v1/models").json()["data"]]
        scene = Scene(model_dir, adapters, server.url, out / "served", tiny=options.double)
        checks = Checks(scene)
        for name in options.checks:
            if time.monotonic() - started > options.limit_s:
                report["checks"][name] = {"ok": False, "why": "no time left"}
                continue
            report["checks"][name] = outcome(getattr(checks, name))
            print(f"{name}: {json.dumps(report['checks'][name])}", file=sys.stderr, flush=True)
    finally:
        if scene is not None:
            scene.close()
        server.stop()
        report["seconds"] = round(time.monotonic() - started, 1)
        if any(not found["ok"] for found in report["checks"].values()) or not report["checks"]:
            print(f"--- the server's log ends:\n{server.tail()}", file=sys.stderr, flush=True)


def outcome(check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a check found, and whether it held."""
    began = time.monotonic()
    try:
        found = {"ok": True, **check()}
    except Exception as error:  # noqa: BLE001  (the other checks go on)
        traceback.print_exc()
        found = {"ok": False, "why": f"{type(error).__name__}: {error}"[:600]}
    return {**found, "seconds": round(time.monotonic() - began, 2)}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen3-0.6b")
    parser.add_argument("--out", type=Path, default=Path("/dev/shm/openrl-vllm-pool"))
    parser.add_argument("--site", type=Path, help="where vLLM is, if not in this environment")
    parser.add_argument("--double", action="store_true", help="the test double in place of vLLM, a tiny model")
    parser.add_argument("--start-s", type=float, default=260.0, help="for the server to answer")
    parser.add_argument("--limit-s", type=float, default=420.0, help="no check begins later")
    parser.add_argument("--checks", nargs="*", default=list(CHECKS), choices=CHECKS)
    options = parser.parse_args(argv)
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    report: dict[str, Any] = {"benchmark": "vllm_pool", "model": options.model, "device": device, "checks": {}}
    try:
        run(options, report)
    except Exception as error:  # noqa: BLE001  (the last line is always the report)
        traceback.print_exc()
        report["broke"] = f"{type(error).__name__}: {error}"[:6000]
    report["failed"] = [name for name, found in report["checks"].items() if not found["ok"]]
    report["ok"] = not report["failed"] and "broke" not in report
    sys.stderr.flush()
    print(json.dumps(report), flush=True)
    return report


if __name__ == "__main__":
    sys.exit(0 if main()["ok"] else 1)
