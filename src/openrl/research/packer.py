"""Keeps as many attempts running as a study says, or as the server has room for."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace

from openrl.errors import Unavailable
from openrl.research.journal import AttemptRecord, Journal
from openrl.research.packing import HOLD_S, LONGEST_GAP_S, Packing, Reading, repacked
from openrl.research.server_load import Load, LoadSource
from openrl.research.study import Study
from openrl.telemetry.logs import get_logger

LOOK_S = 5.0
_SETTLED_S = 120.0  # an attempt that has used nothing for so long will use little
_log = get_logger(__name__)


class Packer:
    """Gives attempts their places; running ones are never ended."""

    def __init__(self, study: Study, journal: Journal, source: LoadSource | None) -> None:
        """`source` is asked where `parallel` is "auto"."""
        assert (study.parallel == "auto") <= (source is not None), "somebody tells of the load"
        self._study = study
        self._journal = journal
        self._source = source
        self._placed: set[int] = set()
        self._waiting: list[asyncio.Future[None]] = []
        self._readings: list[Reading] = []
        self._is_blind = False
        now, last = time.monotonic(), journal.state.packing
        if study.parallel != "auto":
            self._packing = Packing(study.parallel, changed_at=now)
        elif last is None:
            self._packing = Packing(changed_at=now)
        else:
            self._packing = Packing(min(last.wanted, study.max_parallel), "as before the interruption", now)

    @property
    def wanted(self) -> int:
        """So many at once."""
        return self._packing.wanted

    @asynccontextmanager
    async def place(self, number: int) -> AsyncGenerator[None]:
        """While an attempt runs; entered when fewer run than are wanted."""
        while len(self._placed) >= self.wanted:
            await self.changed()
        self._placed.add(number)
        try:
            yield
        finally:
            self._placed.discard(number)
            self._tell()

    def changed(self) -> asyncio.Future[None]:
        """Done as soon as there may be room that there is not at the moment of the call."""
        change = asyncio.get_running_loop().create_future()
        self._waiting.append(change)
        return change

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for change in waiting:
            if not change.done():  # whoever waited may have been cancelled
                change.set_result(None)

    async def run(self) -> None:
        """Follow the server's load, for ever; nothing to do where the study says how many."""
        if self._study.parallel != "auto" or self._source is None:
            return
        self._write(None)
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                load = await self._source.load()
            except Unavailable as error:
                self._lost_sight(error)
                continue
            self._is_blind = False
            self._take(load)

    def _take(self, load: Load) -> None:
        now = time.monotonic()
        running = [self._journal.state.attempts[number] for number in self._placed]
        is_settled = all(_has_settled(each, time.time()) for each in running)
        self._readings = [each for each in self._readings if each.at > now - HOLD_S - LONGEST_GAP_S]
        self._readings.append(Reading(now, load.device_duty, load.queue_wait_s, len(running), is_settled))
        packing = repacked(self._packing, self._readings, self._study.max_parallel, now)
        if packing is not self._packing:
            self._packing = packing
            self._write(load)
            self._tell()

    def _lost_sight(self, error: Unavailable) -> None:
        """Nothing changes while nobody tells; written down once."""
        if not self._is_blind:
            self._is_blind = True
            self._packing = replace(self._packing, why=str(error))
            self._write(None)

    def _write(self, load: Load | None) -> None:
        packing, running = self._packing, len(self._placed)
        signals = {} if load is None else {"device_duty": load.device_duty, "queue_wait_s": load.queue_wait_s}
        self._journal.append(
            "packed", 0, wanted=packing.wanted, why=packing.why, num_running=running, at=time.time(), **signals
        )
        _log.info("attempts at once", wanted=packing.wanted, why=packing.why, running=running)


def _has_settled(attempt: AttemptRecord, now: float) -> bool:
    """Whether the server's load has what the attempt makes of it."""
    has_begun = bool(attempt.reports) or attempt.usage.tokens > 0 or attempt.usage.gpu_seconds > 0
    return has_begun or now - attempt.started_at > _SETTLED_S
