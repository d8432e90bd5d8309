"""The worker process: loads the models once, then serves one scheduler after the other."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn, TextIO

from openrl.errors import OpenRLError, Unauthorized, Unavailable, WorkerLost
from openrl.rpc.transport import Connection, connect, resolve
from openrl.store.base import Blobs
from openrl.store.open_blobs import open_blobs
from openrl.telemetry.logs import configure_logs, get_logger
from openrl.telemetry.metrics import create_worker_metrics
from openrl.telemetry.tracing import create_tracer
from openrl.worker.engines import EngineFactory, EngineTable
from openrl.worker.probes import serve_probes
from openrl.worker.session import Session
from openrl.worker.settings import EXIT_LOST, EXIT_REFUSED, WorkerSettings
from openrl.worker.work_watch import WorkWatch

_FIRST_PAUSE_S = 0.1
_LAST_PAUSE_S = 1.0
_BEAT_S = 1.0
log = get_logger(__name__)


def main(create_engines: EngineFactory, settings_file: TextIO = sys.stdin) -> None:
    """Run until Shutdown, SIGTERM or the loss of the scheduler, then end the process."""
    settings = WorkerSettings.model_validate_json(settings_file.read())
    configure_logs(settings.worker_id, settings.log_level)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server decides
    blobs = open_blobs(settings.config.store, settings.blobs_dir)
    process = WorkerProcess(settings, blobs)
    config = settings.config.worker
    try:
        with serve_probes(config.http_address, process, process.metrics, config.longest_step_s):
            asyncio.run(process.run_or_exit(create_engines))
    except Unavailable as error:
        sys.stdout.write(f"{error}\n")
        _leave(EXIT_REFUSED)


class WorkerProcess:
    """Engines that live as long as the process, and a session with a scheduler while there is one."""

    def __init__(self, settings: WorkerSettings, blobs: Blobs) -> None:
        self._settings = settings
        self._blobs = blobs
        self._session: Session | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_started = False
        self._is_drained = False  # it is to stay empty
        self._is_ending = False  # SIGTERM came
        self._beat_at = time.monotonic()
        self.metrics = create_worker_metrics()
        """What its probes serve."""
        self._tracer = create_tracer(settings.config.telemetry, "openrl-worker")
        self._watch = WorkWatch(self.metrics, self._tracer)

    def is_started(self) -> bool:
        return self._is_started

    def is_ready(self) -> bool:
        return self._session is not None and not (self._is_drained or self._is_ending)

    def stillness_s(self) -> float:
        session = self._session
        return max(time.monotonic() - self._beat_at, 0.0 if session is None else session.step_age_s())

    def ask_to_drain(self) -> None:
        loop = self._loop
        if loop is not None:
            loop.call_soon_threadsafe(self._stay_empty)

    async def run_or_exit(self, create_engines: EngineFactory) -> None:
        """Ends the process, with a status that tells why."""
        status = EXIT_LOST
        try:
            await self.run(create_engines)
            self._blobs.close()
            status = 0
        except WorkerLost as error:
            log.warning("worker ends: the scheduler is gone", error=str(error))
        except _Refused as error:
            status = EXIT_REFUSED
            sys.stdout.write(f"{error.__cause__}\n")
        finally:
            if self._tracer is not None:
                self._tracer.close()
            _leave(status)

    async def run(self, create_engines: EngineFactory) -> None:
        """Until told to end; raises WorkerLost where there is no other scheduler to look for."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGTERM, self._end)
        beating = asyncio.ensure_future(self._beat())
        try:
            # Engines live and die in this one thread.
            compute = ThreadPoolExecutor(1, thread_name_prefix="compute")
            engines = await self._load(create_engines, compute)
            self._is_started = True
            log.info("models are loaded", base_models=list(engines))
            await self._work(engines, compute)
        finally:
            beating.cancel()

    async def _work(self, engines: EngineTable, compute: ThreadPoolExecutor) -> None:
        while True:
            connection = await self._connect()
            self._session = Session(
                self._settings,
                engines,
                self._blobs,
                compute,
                connection,
                self._watch,
                self._set_drained,
                is_draining=self._is_drained,
            )
            self._write_ready_file()
            if await self._serve(self._session):
                return
            self._session = None

    async def _beat(self) -> None:
        while True:
            self._beat_at = time.monotonic()
            await asyncio.sleep(_BEAT_S)

    async def _load(self, create_engines: EngineFactory, compute: ThreadPoolExecutor) -> EngineTable:
        config = self._settings.config
        scratch_dir = config.data_dir / "scratch" / self._settings.worker_id
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(compute, create_engines, config, self._blobs, scratch_dir)
        except OpenRLError as error:
            raise _Refused from error

    async def _serve(self, session: Session) -> bool:
        """Whether the worker is to end; raises WorkerLost where it must not look for another scheduler."""
        lost: WorkerLost | None = None
        try:
            await session.run()
        except* WorkerLost as group:
            lost = _first(group)
        if lost is None or self._is_ending:
            return True
        if not self._settings.reconnects:
            raise lost
        log.warning("scheduler lost; looking for another", error=str(lost))
        return False

    async def _connect(self) -> Connection:
        """To the first of the addresses where a scheduler listens; raises WorkerLost where it must not look further."""
        secret = bytes.fromhex(self._settings.secret)
        if not self._settings.reconnects:
            return await connect(self._settings.address, secret)
        for pause_s in pauses():
            for address in await resolve(self._settings.address):
                try:
                    return await connect(address, secret)
                except (WorkerLost, Unauthorized) as error:
                    log.info("no scheduler there", address=address, error=str(error))
            await asyncio.sleep(pause_s)
        raise AssertionError("pauses have no end")

    def _stay_empty(self) -> None:
        """Hand everything over and take nothing new, also from the schedulers to come."""
        if self._session is not None and not self._is_drained:
            self._session.drain(stays=True)
        self._is_drained = True

    def _set_drained(self, is_drained: bool) -> None:
        """As the scheduler wants it; that one acts on it itself."""
        self._is_drained = is_drained

    def _end(self) -> None:
        """SIGTERM: hand everything over and end, within the time there is."""
        if self._session is None:
            _leave(0)
        if not self._is_ending:
            self._is_ending = True
            self._session.drain()
            asyncio.get_running_loop().call_later(self._settings.config.worker.drain_s, _leave, EXIT_LOST)

    def _write_ready_file(self) -> None:
        file = self._settings.ready_file
        if file is not None:
            aside = file.with_name(f"{file.name}.{os.getpid()}")
            aside.write_text(json.dumps({"worker_id": self._settings.worker_id}))
            aside.replace(file)


def _first(group: BaseExceptionGroup[WorkerLost]) -> WorkerLost:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, WorkerLost), "the group was split by this type"
    return error


def pauses() -> Iterator[float]:
    """Between two rounds of looking for a scheduler: longer each time, up to a bound."""
    pause_s = _FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, _LAST_PAUSE_S)


class _Refused(Exception):
    """The engines cannot be built; the cause says why."""


def _leave(status: int) -> NoReturn:
    """End at once: a compute thread deep in a micro-batch cannot be stopped, and tearing torch down takes seconds."""
    error = sys.exc_info()[1]
    if error is not None:
        log.error("worker ends: it broke", exc_info=error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
