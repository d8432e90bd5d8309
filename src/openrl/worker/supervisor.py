"""Keeps one worker process alive: starts it, starts it again when it dies, ends it with the server."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Sequence

from openrl.config import worker_environment
from openrl.errors import InvalidRequest
from openrl.telemetry.logs import get_logger
from openrl.worker.settings import EXIT_REFUSED, WorkerSettings

WORKER_COMMAND = (sys.executable, "-m", "openrl.worker")
_FIRST_WAIT_S = 0.5
_MAX_WAIT_S = 30.0
_HEALTHY_S = 60.0
log = get_logger(__name__)


class Supervisor:
    """One child process at a time. `pid` is None while none runs."""

    def __init__(
        self,
        settings: WorkerSettings,
        command: Sequence[str] = WORKER_COMMAND,
        grace_s: float = 10.0,
        on_restart: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._command = command
        self._grace_s = grace_s
        self._on_restart = on_restart
        self._is_draining = False
        self.pid: int | None = None

    def drain(self) -> None:
        """The worker is not started again: `run` returns when it has ended."""
        self._is_draining = True

    async def run(self) -> None:
        """Until drained or cancelled; then the child gets SIGTERM and, when it takes too long, SIGKILL.

        Raises InvalidRequest with the worker's own words when it cannot start with this configuration.
        """
        loop = asyncio.get_running_loop()
        wait_s = _FIRST_WAIT_S
        while True:
            started = loop.time()
            status, words = await self._run_once()
            if self._is_draining:
                return
            if status == EXIT_REFUSED:
                raise InvalidRequest(f"worker {self._settings.worker_id} cannot start: {words}")
            if loop.time() - started > _HEALTHY_S:
                wait_s = _FIRST_WAIT_S
            log.warning("worker died; starting it again", worker=self._settings.worker_id, status=status, wait_s=wait_s)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _MAX_WAIT_S)
            self._on_restart()

    async def _run_once(self) -> tuple[int, str]:
        """Exit status and last words of one child."""
        child = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=worker_environment(self._settings.config.data_dir),
        )
        self.pid = child.pid
        try:
            output, _ = await child.communicate(self._settings.model_dump_json().encode())
            assert child.returncode is not None, "communicate returns when the child has ended"
            return child.returncode, output.decode(errors="replace").strip()
        finally:
            self.pid = None
            await self._end(child)

    async def _end(self, child: asyncio.subprocess.Process) -> None:
        if child.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._grace_s):
                await child.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
