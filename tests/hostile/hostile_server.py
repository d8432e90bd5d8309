"""A server in a child process whose memory and log are watched while it is mistreated."""

import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from openrl.gateway.app import API_PREFIX
from tests.gateway.gateway_server import KEYS

MAX_GROWTH_BYTES = 200 * 2**20


@dataclass(frozen=True)
class HostileServer:
    """`log` is what it wrote, at level debug."""

    url: str
    log: Path
    process: "subprocess.Popen[str]"

    def client(self, tenant: str, **options: Any) -> httpx.Client:
        """Plain HTTP as a tenant."""
        return httpx.Client(
            base_url=f"{self.url}{API_PREFIX}", headers={"X-API-Key": KEYS[tenant]}, timeout=60, **options
        )

    def memory(self, name: str = "VmRSS") -> int:
        """Bytes, of VmRSS or VmHWM."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))

    @contextmanager
    def bounded_memory(self, max_bytes: int = MAX_GROWTH_BYTES) -> Generator[None]:
        """Fails when the process ever holds so much more than before, also for a moment."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")  # the peak is where it is now
        before = self.memory()
        yield
        growth = self.memory("VmHWM") - before
        print(f"memory grew by {growth / 2**20:.0f} MiB at most")
        assert growth < max_bytes, f"memory grew by {growth / 2**20:.0f} MiB"

    def check_log(self) -> None:
        """No request has met an error that is ours."""
        lines = self.log.read_text().splitlines()
        assert not [line for line in lines if '"level": "error"' in line or "Traceback" in line]

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(30) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()


def start(root: Path, **settings: Any) -> HostileServer:
    root.mkdir(parents=True, exist_ok=True)
    log = root / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            (sys.executable, "-m", "tests.hostile.serve", str(root)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out, text=True,
        )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(settings) + "\n")
    process.stdin.flush()
    url = process.stdout.readline().strip()
    assert url, log.read_text()
    return HostileServer(url, log, process)
