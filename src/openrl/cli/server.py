"""The server of one machine: gateway and scheduler in this process, the worker in a child."""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from openrl.catalog import Catalog
from openrl.cli.announcement import Announcement, Starting
from openrl.cli.credentials import have_first_key, have_secret
from openrl.cli.data_dir import DataDir, open_store
from openrl.cli.http_server import bind, create_http_server, url_of
from openrl.cli.interpreter import settle_interpreter
from openrl.config import Config
from openrl.errors import OpenRLError
from openrl.gateway.app import create_app
from openrl.rpc.transport import serve_workers
from openrl.scheduler.loop import Scheduler
from openrl.store.base import Blobs, Store
from openrl.telemetry.http import MeteredApp
from openrl.telemetry.logs import LogLevel
from openrl.telemetry.metrics import create_metrics
from openrl.worker.settings import WorkerSettings
from openrl.worker.supervisor import WORKER_COMMAND, Supervisor

_READY_POLL_S = 0.05
_STATS_S = 1.0
_WORKER_ID = "worker-0"


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What `openrl serve` takes beside the configuration."""

    ready_file: Path | None = None
    log_level: LogLevel = "warning"
    worker_command: tuple[str, ...] = WORKER_COMMAND


async def run_server(config: Config, options: ServeOptions) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the wait.

    Raises OpenRLError when it cannot start: no such model, the port or the data directory is taken.
    """
    data_dir = DataDir(config.data_dir)
    catalog = Catalog.load(config.models)
    stop = _stop_on_signals()
    with bind(config.gateway.host, config.gateway.port) as listener, data_dir.lock():
        async with open_store(config) as (store, blobs):
            key = await have_first_key(store, data_dir.key_file, time.time())
            announcement = Announcement(url_of(listener), key, tuple(model.name for model in catalog.all()))
            try:
                signing_key = await have_secret(data_dir.secret_file)
                await Server(config, options, store, blobs, catalog, signing_key).run(listener, announcement, stop)
            except* OpenRLError as group:
                raise _first(group) from None


class Server:
    """The parts that run together; built inside the event loop that runs them."""

    def __init__(
        self,
        config: Config,
        options: ServeOptions,
        store: Store,
        blobs: Blobs,
        catalog: Catalog,
        signing_key: bytes,
    ) -> None:
        self._config = config
        self._options = options
        self._is_stopping = False
        self._secret = secrets.token_bytes(32)
        self._scheduler = Scheduler(store, blobs, config)
        self._metrics = create_metrics()
        app = create_app(
            store,
            blobs,
            catalog,
            config.gateway,
            signing_key=signing_key,
            client=config.client,
            on_cancel=self._scheduler.request_cancelled,
            on_session_end=self._scheduler.session_ended,
            is_ready=lambda: self._scheduler.is_ready() and not self._is_stopping,
        )
        self._http = create_http_server(MeteredApp(app, self._metrics, log_answers=options.log_level == "debug"))
        settle_interpreter()

    async def run(self, listener: socket.socket, announcement: Announcement, stop: asyncio.Event) -> None:
        """Until `stop` is set; raises an ExceptionGroup when a part breaks."""
        async with self._worker_address() as address, asyncio.TaskGroup() as group:
            supervisor = self._supervisor(address)
            scheduling = group.create_task(self._scheduler.run())
            supervising = group.create_task(supervisor.run())
            serving = group.create_task(self._http.serve(sockets=[listener]))
            announcing = group.create_task(self._announce(announcement))
            await stop.wait()
            self._is_stopping = True
            announcing.cancel()
            stop.clear()
            supervisor.drain()
            await _unless(stop, lambda: self._drain(serving))
            supervising.cancel()
            scheduling.cancel()

    async def _drain(self, serving: asyncio.Task[None]) -> None:
        """Answer what can be answered, and let the worker finish and report what it has in hand."""
        self._http.should_exit = True
        await asyncio.wait([serving])
        await self._scheduler.stop()

    @contextlib.asynccontextmanager
    async def _worker_address(self) -> AsyncGenerator[str]:
        # Not in the data directory: a socket's path may be no longer than 107 bytes.
        with tempfile.TemporaryDirectory(prefix="openrl-") as directory:
            place = f"unix:{directory}/scheduler"
            async with serve_workers(place, self._secret, self._scheduler.serve_worker) as address:
                yield address

    def _supervisor(self, address: str) -> Supervisor:
        settings = WorkerSettings(
            worker_id=_WORKER_ID,
            address=address,
            secret=self._secret.hex(),
            blobs_dir=DataDir(self._config.data_dir).blobs,
            log_level=self._options.log_level,
            config=self._config,
        )
        restarts = self._metrics.worker_restarts.labels(_WORKER_ID)
        return Supervisor(settings, self._options.worker_command, on_restart=restarts.inc)

    async def _announce(self, announcement: Announcement) -> None:
        with Starting(announcement.base_models):
            # Two events of other packages' making, once at the start: asking again is simplest.
            while not (self._scheduler.is_ready() and self._http.started):  # noqa: ASYNC110
                await asyncio.sleep(_READY_POLL_S)
        if self._options.ready_file is not None:
            await asyncio.to_thread(write_ready_file, self._options.ready_file, announcement)
        announcement.show()
        await self._copy_worker_stats()

    async def _copy_worker_stats(self) -> None:
        """Show the workers' heartbeats in the metrics."""
        while True:
            for worker, stats in self._scheduler.worker_stats().items():
                name = worker.partition("#")[0]  # the scheduler numbers every start of a worker
                self._metrics.worker_busy_seconds.labels(name, "train").set(stats.busy_train_s)
                self._metrics.worker_busy_seconds.labels(name, "sample").set(stats.busy_sample_s)
                self._metrics.worker_sequences.labels(name, "running").set(stats.num_running_sequences)
                self._metrics.worker_sequences.labels(name, "waiting").set(stats.num_waiting_sequences)
                self._metrics.worker_kv_blocks.labels(name, "used").set(stats.kv_blocks_used)
                self._metrics.worker_kv_blocks.labels(name, "total").set(stats.kv_blocks_total)
                self._metrics.worker_resident_runs.labels(name).set(stats.resident_runs)
            await asyncio.sleep(_STATS_S)


def write_ready_file(file: Path, announcement: Announcement) -> None:
    """JSON with url and key; whole from the first moment it can be seen, readable by its owner only."""
    aside = file.with_name(f"{file.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as out:
        json.dump({"url": announcement.url, "key": announcement.key}, out)
    aside.replace(file)


def _stop_on_signals() -> asyncio.Event:
    """Set by SIGTERM and Ctrl-C."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _unless(stop: asyncio.Event, action: Callable[[], Awaitable[None]]) -> None:
    """Do the action, or give it up when `stop` is set."""
    tasks = [asyncio.ensure_future(action()), asyncio.ensure_future(stop.wait())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def _first(group: BaseExceptionGroup[OpenRLError]) -> OpenRLError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, OpenRLError), "the group was split by this type"
    return error
