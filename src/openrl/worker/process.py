"""The worker process: a connection to the scheduler around the compute thread."""

import asyncio
import math
import os
import queue
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, TextIO

from openrl.errors import OpenRLError, WorkerLost
from openrl.rpc.messages import Command, Report, Shutdown, WorkerLeaving, WorkerReady
from openrl.rpc.transport import Connection, connect
from openrl.store.base import Blobs
from openrl.store.blobs import DirectoryBlobs
from openrl.telemetry.logs import configure_logs, get_logger
from openrl.worker.engines import EngineFactory, EngineTable
from openrl.worker.executor import Executor, Inbox
from openrl.worker.machine import Deliverers, create_deliverers, create_executor
from openrl.worker.settings import WorkerSettings
from openrl.worker.timeshare import TimeShare
from openrl.worker.training_turns import TrainingTurns

EXIT_REFUSED = 2
"""Exit status when the engines cannot be built from this configuration: starting again would not help."""
EXIT_LOST = 3
"""Exit status when the scheduler is gone or a thread of this process broke."""
_HEARTBEAT_S = 1.0
log = get_logger(__name__)


def main(create_engines: EngineFactory, settings_file: TextIO = sys.stdin) -> NoReturn:
    """Run until Shutdown, SIGTERM or the loss of the scheduler, then end the process."""
    settings = WorkerSettings.model_validate_json(settings_file.read())
    configure_logs(settings.worker_id, settings.log_level)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server decides
    blobs = DirectoryBlobs(settings.blobs_dir, settings.config.store.pack_bytes)
    asyncio.run(WorkerProcess(settings, blobs).run_or_exit(create_engines))
    blobs.close()
    _leave(0)


class WorkerProcess:
    """Three tasks (receive, send, beat) around three threads (compute, results, saves)."""

    def __init__(self, settings: WorkerSettings, blobs: Blobs) -> None:
        self._settings = settings
        self._blobs = blobs
        self._inbox: Inbox = queue.SimpleQueue()
        self._outbox: asyncio.Queue[Report | None] = asyncio.Queue()
        self._executor: Executor | None = None  # there once the models are loaded

    async def run_or_exit(self, create_engines: EngineFactory) -> None:
        """As `run`, but where that raises, the process ends with a status that tells why."""
        status: int | None = EXIT_LOST
        try:
            await self.run(create_engines)
            status = None
        except* WorkerLost as group:
            log.warning("worker ends: the scheduler is gone", error=str(group.exceptions[0]))
        except* OpenRLError as group:
            status = EXIT_REFUSED
            sys.stdout.write(f"{group.exceptions[0]}\n")
        finally:
            if status is not None:
                _leave(status)

    async def run(self, create_engines: EngineFactory) -> None:
        """Returns when all that was taken is done and reported; raises an ExceptionGroup when something broke."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._inbox.put, Shutdown())

        def report(message: Report) -> None:
            loop.call_soon_threadsafe(self._outbox.put_nowait, message)

        async with asyncio.TaskGroup() as group:
            connection = await connect(self._settings.address, bytes.fromhex(self._settings.secret))
            endless = [group.create_task(self._receive(connection)), group.create_task(self._beat())]
            sending = group.create_task(self._send(connection))
            deliverers = create_deliverers(self._blobs, report)
            delivering = [
                group.create_task(asyncio.to_thread(each.run)) for each in (deliverers.results, deliverers.saves)
            ]
            await asyncio.to_thread(self._compute, create_engines, deliverers, report)
            deliverers.close()
            await asyncio.wait(delivering)
            for task in endless:
                task.cancel()
            self._outbox.put_nowait(WorkerLeaving())
            self._outbox.put_nowait(None)
            await sending
            await connection.close()

    def _compute(self, create_engines: EngineFactory, deliverers: Deliverers, report: Callable[[Report], None]) -> None:
        """The compute thread: engines live and die in it."""
        config = self._settings.config
        scratch_dir = config.data_dir / "scratch" / self._settings.worker_id
        engines = create_engines(config, self._blobs, scratch_dir)
        tenant_shares = config.scheduler.tenant_shares
        share = TimeShare(config.worker.max_slice_s or math.inf, config.worker.max_training_lag_s, tenant_shares)
        turns = TrainingTurns(tenant_shares)
        self._executor = create_executor(
            engines, self._blobs, self._inbox, deliverers, report, share=share, turns=turns
        )
        report(_ready(self._settings.worker_id, engines))
        log.info("worker is ready", base_models=list(engines))
        self._executor.run()

    async def _receive(self, connection: Connection) -> None:
        while True:
            command = await connection.receive()
            assert isinstance(command, Command), "the scheduler sends commands only"
            self._inbox.put(command)

    async def _send(self, connection: Connection) -> None:
        while (message := await self._outbox.get()) is not None:
            await connection.send(message)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT_S)
            if self._executor is not None:
                self._outbox.put_nowait(self._executor.stats)


def _ready(worker_id: str, engines: EngineTable) -> WorkerReady:
    return WorkerReady(
        worker_id=worker_id,
        base_models=tuple(engines),
        max_pass_tokens=max(each.max_pass_tokens for each in engines.values()),
        max_sequences=sum(each.max_sequences for each in engines.values()),
    )


def _leave(status: int) -> NoReturn:
    """End at once: a compute thread deep in a micro-batch cannot be stopped, and tearing torch down takes seconds."""
    error = sys.exc_info()[1]
    if error is not None:
        log.error("worker ends: it broke", exc_info=error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
