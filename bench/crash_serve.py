"""The installation of one machine that bench.crash kills: `openrl serve` and its worker."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import httpx
from tests.live_server import MODEL_NAME, OPENRL, environment, openrl

from openrl.store.base import Blobs
from openrl.store.blobs import DirectoryBlobs

START_TIMEOUT_S = 300.0
CONFIG = """
[scheduler]
max_replay_s = 0.3
[store]
pack_bytes = 262144
result_retention_s = 86400
"""
"""Snapshots and packs so small that every run of this benchmark meets many."""


class Installation(Protocol):
    """What can be killed and started again."""

    home: Path
    url: str
    keys: Mapping[str, str]  # by tenant

    @property
    def database_url(self) -> str:
        """Of the rows."""
        ...

    def start(self) -> None:
        """Everything; returns when it is ready."""
        ...

    def kinds(self) -> Mapping[str, float]:
        """What can be killed at this moment, and how likely it should be."""
        ...

    def kill(self, kind: str) -> Callable[[], None]:
        """Kill -9; the call that starts it again, which returns at once."""
        ...

    def wait_ready(self) -> None:
        """Until it says that it is ready; raises AssertionError when that takes too long."""
        ...

    def stop(self) -> None:
        """SIGTERM, and wait; raises AssertionError where a process does not end well."""
        ...

    def destroy(self) -> None:
        """Leave no process behind."""
        ...

    def open_blobs(self) -> Blobs:
        """The stored files; only while nothing runs."""
        ...

    def drafts(self) -> list[str]:
        """Files that are half written, or left over; only while nothing runs."""
        ...


@dataclass(slots=True)
class ServeInstallation:
    """SQLite and a directory. Worker, server, or both at once are killed."""

    model_dir: Path
    home: Path
    disk: Path | None = None  # where rows, files and the log are, if not at home
    config: str = CONFIG
    environment: Mapping[str, str] = field(default_factory=environment)
    url: str = ""
    keys: Mapping[str, str] = field(default_factory=dict[str, str])
    _server: "subprocess.Popen[bytes] | None" = None
    _old_workers: list[int] = field(default_factory=list[int])

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self._data / 'openrl.db'}"

    @property
    def _data(self) -> Path:
        return (self.disk or self.home) / "data"

    def start(self) -> None:
        self._data.mkdir(parents=True, exist_ok=True)
        (self.home / "openrl.toml").write_text(self.config)
        self._start_server()
        self.wait_ready()
        if not self.keys:
            told = json.loads(self._ready_file.read_text())
            self.url = told["url"]
            made = openrl("keys", "create", "--tenant", "other", "--data-dir", str(self._data))
            assert made.returncode == 0, made.stderr
            self.keys = {"default": told["key"], "other": made.stdout.strip()}

    def kinds(self) -> Mapping[str, float]:
        both = {"worker": 2.0, "server": 2.0, "both": 1.0}
        return both if self.workers() else {"server": 1.0}

    def kill(self, kind: str) -> Callable[[], None]:
        workers = self.workers()
        self._old_workers += workers
        if kind in ("server", "both"):
            assert self._server is not None
            self._server.kill()
        if kind in ("worker", "both"):
            for pid in workers:
                kill_worker(pid)
        if kind == "worker":  # the server starts another
            return lambda: None
        assert self._server is not None
        self._server.wait()
        return self._start_server

    def wait_ready(self) -> None:
        assert self._server is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (self._ready_file.exists() and is_ready(json.loads(self._ready_file.read_text())["url"])):
            assert self._server.poll() is None, f"the server ended: {self._log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"not ready: {self._log.read_text()[-2000:]}"
            time.sleep(0.05)

    def stop(self) -> None:
        assert self._server is not None
        self._server.send_signal(signal.SIGTERM)
        status = self._server.wait(START_TIMEOUT_S)
        assert status == 0, f"the server ended with status {status}"

    def destroy(self) -> None:
        if self._server is not None:
            self._old_workers += self.workers()
            self._server.kill()
            self._server.wait()
        for pid in self._old_workers:
            kill_worker(pid)

    def open_blobs(self) -> Blobs:
        return DirectoryBlobs(self._data / "blobs")

    def drafts(self) -> list[str]:
        return drafts_in(self._data / "blobs")

    @property
    def _ready_file(self) -> Path:
        return self.home / "ready.json"

    @property
    def _log(self) -> Path:
        return (self.disk or self.home) / "server.log"

    def _start_server(self) -> None:
        self._ready_file.unlink(missing_ok=True)
        port = self.url.rpartition(":")[2] or "0"
        arguments = ("--model", f"{MODEL_NAME}={self.model_dir}", "--data-dir", str(self._data), "--port", port)
        more = ("--config", str(self.home / "openrl.toml"), "--ready-file", str(self._ready_file))
        with self._log.open("a") as log:
            self._server = subprocess.Popen(
                (*OPENRL, "serve", *arguments, *more), stdout=log, stderr=log, env=self.environment
            )

    def processes(self) -> list[int]:
        """All process ids."""
        assert self._server is not None
        return [self._server.pid, *self.workers()]

    def workers(self) -> list[int]:
        """The server's child processes."""
        if self._server is None or self._server.poll() is not None:
            return []
        with contextlib.suppress(FileNotFoundError):
            children = Path(f"/proc/{self._server.pid}/task/{self._server.pid}/children").read_text()
            return [int(pid) for pid in children.split()]
        return []


def drafts_in(blobs: Path) -> list[str]:
    """Workplaces that processes of a directory store left behind."""
    return [str(path) for path in (blobs / "tmp").iterdir() if path.is_dir()]


def is_ready(url: str) -> bool:
    """What the server says of itself."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/api/v1/readyz", timeout=5.0).status_code == 200
    return False


def kill_worker(pid: int) -> None:
    """Kill -9, if the process is there and a worker: its number may be another's by now."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        if b"openrl.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
