"""A real `openrl serve` in a child process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

OPENRL = (sys.executable, "-c", "from openrl.cli.main import main; main()")
MODEL_NAME = "tiny"
START_TIMEOUT_S = 180.0


def environment() -> dict[str, str]:
    """One thread for tensors: tests share the machine."""
    source = str(Path(__file__).parents[1] / "src")
    return {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}


def openrl(
    *arguments: str, settings: Mapping[str, str] | None = None, timeout_s: float = START_TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    """Run a command, with `settings` in its environment, to its end, which must come within `timeout_s`."""
    return subprocess.run(
        (*OPENRL, *arguments),
        capture_output=True,
        text=True,
        check=False,
        env={**environment(), **(settings or {})},
        timeout=timeout_s,
    )


@dataclass(frozen=True, slots=True)
class LiveServer:
    """`key` and `other_key` belong to two tenants, "default" and "other"."""

    url: str
    key: str
    other_key: str
    data_dir: Path
    process: "subprocess.Popen[str]"

    @property
    def worker_pids(self) -> list[int]:
        """Its child processes."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    @property
    def metrics_urls(self) -> tuple[str, ...]:
        """Where the workers' heartbeats show."""
        return (f"{self.url}/metrics",)

    def stop(self, timeout_s: float = 60.0) -> int:
        """Let it drain; returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()


def start_server(model_dir: Path, data_dir: Path, *arguments: str, name: str = MODEL_NAME) -> LiveServer:
    """Start a server over the directory, old or new, and wait until it is ready."""
    data_dir.mkdir(parents=True, exist_ok=True)
    ready_file = data_dir / "ready.json"
    ready_file.unlink(missing_ok=True)
    model = f"{name}={model_dir}"
    command = (*OPENRL, "serve", "--model", model, "--port", "0", "--data-dir", str(data_dir))
    with (data_dir / "server.log").open("a") as log:
        process = subprocess.Popen(
            (*command, "--ready-file", str(ready_file), *arguments),
            stdout=log, stderr=log, text=True, env=environment(),
        )  # fmt: skip
    ready = _wait_ready(process, ready_file, data_dir / "server.log")
    return LiveServer(ready["url"], ready["key"], _other_key(data_dir), data_dir, process)


def _wait_ready(process: "subprocess.Popen[str]", ready_file: Path, log: Path) -> dict[str, str]:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready_file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"the server did not start: {log.read_text()[-2000:]}")
        time.sleep(0.05)
    return json.loads(ready_file.read_text())


def _other_key(data_dir: Path) -> str:
    """The second tenant's key, kept beside the data for the next start."""
    file = data_dir / "other-key"
    if not file.exists():
        made = openrl("keys", "create", "--tenant", "other", "--data-dir", str(data_dir))
        assert made.returncode == 0, made.stderr
        file.write_text(made.stdout.strip())
    return file.read_text()
