"""Runs a study: attempts as processes, several at once, every step written down before the next."""

import asyncio
import contextlib
import ctypes
import json
import math
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from openrl.errors import Unavailable
from openrl.research.attempt import DIRECTORY_VARIABLE, PARAMS_FILE, REPORTS_FILE, STOP_FILE
from openrl.research.evidence import promoted
from openrl.research.journal import ENDED, AttemptState, Journal
from openrl.research.meter import Meter
from openrl.research.proposer import Proposer
from openrl.research.study import STOP_FILE as STUDY_STOP_FILE
from openrl.research.study import Params, Study
from openrl.telemetry.logs import get_logger

_log = get_logger(__name__)

_LOOK_S = 0.5  # between looks at reports
_METER_S = 5.0
_STOP_S = 60.0  # an attempt that was asked to stop may take this long
_KILL_S = 10.0
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True, slots=True)
class Next:
    """An attempt to run."""

    number: int
    params: Params
    seed: int
    is_promotion: bool


class Runner:
    """One study in one directory; `run` may be cut off at any moment and be called again by another process."""

    def __init__(self, directory: Path, study: Study, journal: Journal, meter: Meter) -> None:
        self._directory = directory
        self._study = study
        self._journal = journal
        self._meter = meter
        self._proposer = Proposer(study)
        self._proposer.restore(journal.state.attempts)
        self._interrupted = [each for each in journal.state.attempts.values() if each.state not in ENDED]
        self._running: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until the budget is used up, nothing is left to try, or somebody stops it; running attempts end first."""
        async with asyncio.TaskGroup() as tasks:
            metering = tasks.create_task(self._meter_for_ever())
            while True:
                while len(self._running) < self._study.parallel and (upcoming := self._next()) is not None:
                    self._start(tasks, upcoming)
                if not self._running:
                    break
                await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            metering.cancel()
        await self._read_meter()

    def _start(self, tasks: asyncio.TaskGroup, upcoming: Next) -> None:
        self._begin(upcoming)
        task = tasks.create_task(self._run_attempt(upcoming))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def _next(self) -> Next | None:
        """Interrupted ones first, then new parameters, then further seeds of the best."""
        if (self._directory / STUDY_STOP_FILE).exists() or self._is_spent():
            return None
        if self._interrupted:
            each = self._interrupted.pop(0)
            return Next(each.number, each.params, each.seed, each.is_promotion)
        number, budget = self._journal.state.next_number, self._study.budget
        num_again = (self._study.promote + bool(self._study.defaults)) * (len(self._study.seeds) - 1)
        num_promotions = min(num_again, budget.attempts - 1)
        explored = sum(not each.is_promotion for each in self._journal.state.attempts.values())
        if explored < budget.attempts - num_promotions:
            params = self._proposer.propose()
            if params is not None:
                return Next(number, params, self._study.seeds[0], is_promotion=False)
        if any(not each.is_promotion and each.state not in ENDED for each in self._journal.state.attempts.values()):
            return None  # who is the best is known when all have ended
        return self._next_promotion(number)

    def _next_promotion(self, number: int) -> Next | None:
        attempts = self._journal.state.attempts.values()
        tried = {(repr(sorted(each.params.items())), each.seed) for each in attempts}
        for params in promoted(self._study, attempts):
            for seed in self._study.seeds[1:]:
                if (repr(sorted(params.items())), seed) not in tried:
                    return Next(number, params, seed, is_promotion=True)
        return None

    def _is_spent(self) -> bool:
        """Whether no attempt may begin."""
        is_full = self._journal.state.next_number > self._study.budget.attempts and not self._interrupted
        return is_full or self._is_used_up()

    def _is_used_up(self) -> bool:
        """Whether running attempts have to end too."""
        budget, used = self._study.budget, self._journal.state.usage
        return used.gpu_seconds >= (budget.gpu_seconds or math.inf) or used.tokens >= (budget.tokens or math.inf)

    def _begin(self, upcoming: Next) -> None:
        home = self._home(upcoming.number)
        home.mkdir(parents=True, exist_ok=True)
        for name in (REPORTS_FILE, STOP_FILE):
            (home / name).unlink(missing_ok=True)
        given = {"params": upcoming.params, "seed": upcoming.seed, "project_id": self.project_id(upcoming.number)}
        (home / PARAMS_FILE).write_text(json.dumps(given, indent=2))
        known = upcoming.number in self._journal.state.attempts
        self._journal.append(
            "started", upcoming.number, params=upcoming.params, seed=upcoming.seed,
            is_promotion=upcoming.is_promotion, at=time.time(),
        )  # fmt: skip
        if not known and not upcoming.is_promotion:
            self._proposer.begin(self._journal.state.attempts[upcoming.number])

    async def _run_attempt(self, upcoming: Next) -> None:
        home = self._home(upcoming.number)
        variables = {
            **os.environ,
            DIRECTORY_VARIABLE: str(home.absolute()),
            "TINKER_PROJECT_ID": self.project_id(upcoming.number),
        }
        with (home / "log.txt").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self._study.command, cwd=self._directory, env=variables, stdin=asyncio.subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True, preexec_fn=partial(_die_with_parent, os.getpid()),
            )  # fmt: skip
        ended = asyncio.create_task(process.wait())
        try:
            state, reason = await self._watch(upcoming, process, ended)
        finally:
            await _end_process(process, ended)
        self._end(upcoming, state, reason)

    async def _watch(
        self, upcoming: Next, process: asyncio.subprocess.Process, ended: "asyncio.Task[int]"
    ) -> tuple[AttemptState, str]:
        """Follow the reports until the process ends."""
        deadline = time.monotonic() + self._study.attempt_timeout_s
        offset, stopped = 0, ""
        while not ended.done():
            await asyncio.wait((ended,), timeout=_LOOK_S)
            offset, should_stop = self._take_reports(upcoming, offset)
            if not stopped and (should_stop or self._is_used_up()):
                stopped = "not among the best of its rung" if should_stop else "the budget is used up"
                (self._home(upcoming.number) / STOP_FILE).touch()
                deadline = min(deadline, time.monotonic() + _STOP_S)
            if time.monotonic() > deadline:
                await _end_process(process, ended)
                if not stopped:
                    return "failed", f"not over after attempt_timeout_s = {self._study.attempt_timeout_s:g} s"
        self._take_reports(upcoming, offset)
        if stopped:
            return "stopped", stopped
        if process.returncode:
            return "failed", f"exit status {process.returncode}: {_last_line(self._home(upcoming.number) / 'log.txt')}"
        if self._journal.state.attempts[upcoming.number].value(self._study.metric) is None:
            return "failed", f"it reported no {self._study.metric}"
        return "done", ""

    def _take_reports(self, upcoming: Next, offset: int) -> tuple[int, bool]:
        """Write down what is new; where to go on reading, and whether the attempt should stop."""
        path, should_stop = self._home(upcoming.number) / REPORTS_FILE, False
        text = path.read_bytes()[offset:] if path.exists() else b""
        known = {step for step, _ in self._journal.state.attempts[upcoming.number].reports}
        for line in text.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            step, values = _read_report(line)
            if step is None or step in known:
                continue
            self._journal.append("reported", upcoming.number, step=step, values=values)
            if not upcoming.is_promotion:
                should_stop |= self._proposer.report(upcoming.number, step, values)
        return offset, should_stop

    def _end(self, upcoming: Next, state: AttemptState, reason: str) -> None:
        self._journal.append("ended", upcoming.number, state=state, reason=reason, at=time.time())
        record = self._journal.state.attempts[upcoming.number]
        _log.info("attempt ended", attempt=upcoming.number, state=state, value=record.value(self._study.metric))
        if not upcoming.is_promotion:
            self._proposer.end(record)

    async def _meter_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_METER_S)
            await self._read_meter()

    async def _read_meter(self) -> None:
        attempts = self._journal.state.attempts
        since = min((each.started_at for each in attempts.values()), default=time.time())
        by_project = {self.project_id(number): number for number in attempts}
        try:
            used = await self._meter.usage(by_project.keys(), since)
        except Unavailable as error:
            _log.warning("usage not read", error=str(error))
            return
        for project_id, usage in used.items():
            number = by_project[project_id]
            if attempts[number].usage != usage:
                self._journal.append("metered", number, gpu_seconds=usage.gpu_seconds, tokens=usage.tokens)

    def project_id(self, number: int) -> str:
        """The project that the server meters the attempt under."""
        return f"{self._study.name}-{number:04d}"

    def _home(self, number: int) -> Path:
        return self._directory / "attempts" / f"{number:04d}"


def _read_report(line: bytes) -> tuple[int | None, Mapping[str, float]]:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        report = json.loads(line)
        return int(report["step"]), {str(name): float(value) for name, value in report["values"].items()}
    return None, {}


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1][:500] if lines else "no output"


async def _end_process(process: asyncio.subprocess.Process, ended: "asyncio.Task[int]") -> None:
    """SIGTERM to its whole group if it runs, then SIGKILL."""
    if ended.done():
        return
    for kind, patience_s in ((signal.SIGTERM, _KILL_S), (signal.SIGKILL, _KILL_S)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        await asyncio.wait((ended,), timeout=patience_s)
        if ended.done():
            return


def _die_with_parent(parent: int) -> None:
    """In the child: SIGTERM when the runner is gone, so that nothing runs that nobody writes down."""
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)
