"""OpenRL as several processes over PostgreSQL: gateways, schedulers and workers that tests may kill one by one."""

import asyncio
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import psycopg

from openrl.cli.credentials import KeyOptions, create_key, have_tenant
from openrl.store.memory_blobs import MemoryBlobs
from openrl.store.sql import create_store
from tests.live_server import MODEL_NAME, OPENRL, START_TIMEOUT_S, LiveServer, environment, openrl
from tests.postgres import free_port

Role = Literal["gateway", "scheduler", "worker"]
ROLES: tuple[Role, ...] = ("gateway", "worker", "scheduler")
TENANTS = ("default", "other")
MAX_WORKERS = 4
T = TypeVar("T")
_POLL_S = 0.2
_IS_HELD = "expires_at > extract(epoch FROM clock_timestamp())"


@dataclass(slots=True)
class LiveCluster:
    """`keys` belong to the tenants "default" and "other". Processes keep their addresses when they start again."""

    model_dir: Path
    directory: Path
    urls: tuple[str, ...]  # of the gateways
    keys: tuple[str, ...]
    addresses: tuple[str, ...]  # of the schedulers, for workers
    http_addresses: tuple[str, ...]  # of the schedulers, for their metrics
    worker_addresses: tuple[str, ...]  # of the workers' probes
    settings: Mapping[str, str]  # environment of every process
    config: str  # text of a TOML file
    source: Path | None = None  # the package of another version, which knows no later setting; processes start from it
    processes: dict[Role, "dict[int, subprocess.Popen[str]]"] = field(
        default_factory=lambda: {role: {} for role in ROLES}
    )

    @property
    def data_dir(self) -> Path:
        """Shared by all processes: secrets and, unless they are elsewhere, blobs."""
        return self.directory / "data"

    def start(self, role: Role, number: int, *arguments: str) -> None:
        """Start a process; returns at once."""
        command = [*OPENRL, role, "--data-dir", str(self.data_dir), "--config", str(self.directory / "openrl.toml")]
        settings = dict(self.settings)
        match role:
            case "gateway":
                command += ["--model", f"{MODEL_NAME}={self.model_dir}", "--port", self.urls[number].rpartition(":")[2]]
            case "scheduler":
                settings["OPENRL_RPC__ADDRESS"] = self.addresses[number]
                settings["OPENRL_SCHEDULER__HTTP_ADDRESS"] = self.http_addresses[number]
            case "worker":
                command += ["--model", f"{MODEL_NAME}={self.model_dir}", "--name", f"worker-{number}"]
                settings["OPENRL_RPC__ADDRESS"] = ",".join(self.addresses)
                settings["OPENRL_WORKER__HTTP_ADDRESS"] = self.worker_addresses[number]
        if self.source is not None:
            settings["PYTHONPATH"] = str(self.source)
        with self.log(role, number).open("a") as log:
            self.processes[role][number] = subprocess.Popen(
                (*command, "--log-level", "info", *arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
                env={**environment(), **settings},
            )

    def kill(self, role: Role, number: int) -> None:
        """kill -9."""
        process = self.processes[role].pop(number)
        process.kill()
        process.wait()

    def stop_one(self, role: Role, number: int, timeout_s: float = 60.0) -> int:
        """SIGTERM; returns the exit status once it has drained."""
        process = self.processes[role].pop(number)
        process.terminate()
        return process.wait(timeout_s)

    def signal(self, role: Role, number: int, which: signal.Signals) -> None:
        """Stop a process for a while, or let it go on."""
        self.processes[role][number].send_signal(which)

    def stop(self) -> None:
        """End everything: clients first, then what they need."""
        for role in ROLES:
            for process in self.processes[role].values():
                process.send_signal(signal.SIGCONT)
                process.terminate()
            for number in list(self.processes[role]):
                process = self.processes[role].pop(number)
                try:
                    process.wait(START_TIMEOUT_S)
                finally:
                    process.kill()

    def leader(self) -> int:
        """The number of the scheduler that leads; waits until one does."""
        return self.addresses.index(_wait_for(lambda: _leader(self.settings["OPENRL_STORE__URL"])))

    def wait_for_workers(self, count: int) -> None:
        """So many are connected to the scheduler that leads."""
        _wait_for(lambda: _status(self.settings["OPENRL_STORE__URL"]).get("num_workers") == count)

    def wait_until_ready(self) -> None:
        """Every gateway that runs takes requests and, if there are workers, they serve the model."""
        for number, process in self.processes["gateway"].items():
            _wait_for(partial(self._is_ready, self.urls[number], process))
        if self.processes["worker"]:
            _wait_for(lambda: MODEL_NAME in _status(self.settings["OPENRL_STORE__URL"]).get("base_models", ()))

    def log(self, role: Role, number: int) -> Path:
        """What a process has written."""
        return self.directory / f"{role}-{number}.log"

    def as_server(self) -> "ClusterServer":
        """The first gateway, for tests that know of one server only."""
        gateway = self.processes["gateway"][0]
        return ClusterServer(self.urls[0], self.keys[0], self.keys[1], self.data_dir, gateway, self)

    def _is_ready(self, url: str, process: "subprocess.Popen[str]") -> bool:
        assert process.poll() is None, f"the gateway at {url} ended: {self._logs()}"
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return True
        except OSError:  # an answer that is no 200 among them
            return False

    def _logs(self) -> str:
        return "\n".join(f"{file.name}: {file.read_text()[-1500:]}" for file in sorted(self.directory.glob("*.log")))


@dataclass(frozen=True, slots=True)
class ClusterServer(LiveServer):
    """A whole cluster as if it were one server."""

    cluster: LiveCluster

    @property
    def worker_pids(self) -> list[int]:
        return [process.pid for process in self.cluster.processes["worker"].values()]

    @property
    def metrics_urls(self) -> tuple[str, ...]:
        return tuple(f"http://{address}/metrics" for address in self.cluster.http_addresses)

    def stop(self, timeout_s: float = 60.0) -> int:
        self.cluster.stop()
        return 0

    def kill(self) -> None:
        for role in ROLES:
            for number in list(self.cluster.processes[role]):
                self.cluster.kill(role, number)


def start_cluster(
    model_dir: Path,
    directory: Path,
    database_url: str,
    *,
    gateways: int = 2,
    schedulers: int = 2,
    workers: int = 2,
    blobs_url: str = "",
    config: str = "",
    settings: Mapping[str, str] | None = None,
    source: Path | None = None,
) -> LiveCluster:
    """Start all processes and wait until they are ready.

    `config`: a TOML file's text; `settings`: environment; `source`: the package of the version that they are of.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "openrl.toml").write_text(config)
    given = {"OPENRL_STORE__URL": database_url, **(settings or {})}
    if blobs_url:
        given["OPENRL_STORE__BLOBS_URL"] = blobs_url
    cluster = LiveCluster(
        model_dir,
        directory,
        urls=tuple(f"http://127.0.0.1:{free_port()}" for _ in range(gateways)),
        keys=asyncio.run(_make_keys(database_url)) if source is None else _keys_of(source, given, directory / "data"),
        addresses=tuple(f"tcp:127.0.0.1:{free_port()}" for _ in range(schedulers)),
        http_addresses=tuple(f"127.0.0.1:{free_port()}" for _ in range(schedulers)),
        worker_addresses=tuple(f"127.0.0.1:{free_port()}" for _ in range(MAX_WORKERS)),
        settings=given,
        config=config,
        source=source,
    )
    counts: dict[Role, int] = {"scheduler": schedulers, "worker": workers, "gateway": gateways}
    try:
        for role, count in counts.items():
            for number in range(count):
                cluster.start(role, number)
        cluster.wait_until_ready()
    except BaseException:
        for processes in cluster.processes.values():
            for process in processes.values():
                process.kill()
                process.wait()
        raise
    return cluster


async def _make_keys(database_url: str) -> tuple[str, ...]:
    store = await create_store(database_url, MemoryBlobs())
    try:
        now = time.time()
        return tuple(
            [await create_key(store, await have_tenant(store, name, now), KeyOptions("test"), now) for name in TENANTS]
        )
    finally:
        await store.close()


def _keys_of(source: Path, settings: Mapping[str, str], data_dir: Path) -> tuple[str, ...]:
    """As `_make_keys`, by the other version: the schema is to be that one's."""
    given = {**settings, "PYTHONPATH": str(source)}
    made = [openrl("keys", "create", "--tenant", name, "--data-dir", str(data_dir), settings=given) for name in TENANTS]
    for done in made:
        assert done.returncode == 0, done.stderr
    return tuple(done.stdout.strip() for done in made)


# By plain SQL: a store of this version's would migrate the other's tables.
def _leader(database_url: str) -> str:
    return _ask(database_url, f"SELECT address FROM leases WHERE name = 'scheduler' AND {_IS_HELD}") or ""


def _status(database_url: str) -> dict[str, Any]:
    of_lease = "leases.name = lease_name AND leases.epoch = scheduler_status.epoch"
    query = f"SELECT body FROM scheduler_status JOIN leases ON {of_lease} WHERE {_IS_HELD}"
    return _ask(database_url, query) or {}


def _ask(database_url: str, query: str) -> Any:
    with psycopg.connect(database_url) as connection:
        row = connection.execute(query.encode()).fetchone()
        return None if row is None else row[0]


def _wait_for(ask: Callable[[], T], timeout_s: float = START_TIMEOUT_S) -> T:
    """The first answer that is not empty."""
    deadline = time.monotonic() + timeout_s
    while not (answer := ask()):
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(_POLL_S)
    return answer
