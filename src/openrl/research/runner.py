"""Runs a study: attempts as processes, several at once, every step written down before the next."""

import asyncio
import contextlib
import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from openrl.errors import OpenRLError, Unavailable
from openrl.research.attempt import DIRECTORY_VARIABLE, PARAMS_FILE, REPORTS_FILE, STOP_FILE
from openrl.research.evidence import promoted
from openrl.research.journal import ENDED, AttemptRecord, AttemptState, Journal
from openrl.research.keys import Keys, OwnKey
from openrl.research.launchers import Launcher, LocalProcesses, Running
from openrl.research.meter import Meter
from openrl.research.packer import Packer
from openrl.research.proposer import Proposer
from openrl.research.researchers import NoChange, Researchers, next_researcher
from openrl.research.server_load import LoadSource
from openrl.research.study import STOP_FILE as STUDY_STOP_FILE
from openrl.research.study import AgentConfig, Params, Study
from openrl.research.turn import last_lines
from openrl.telemetry.logs import get_logger

_log = get_logger(__name__)

_LOOK_S = 0.5  # between looks at reports
_METER_S = 5.0
_STOP_S = 60.0  # an attempt that was asked to stop may take this long


@dataclass(frozen=True, slots=True)
class Next:
    """An attempt to run."""

    number: int
    params: Params
    seed: int
    is_promotion: bool
    researcher: int = 0
    commit: str = ""  # of a version of the program; with a researcher and none, an agent is to make one
    tree: str = ""
    why: str = ""

    @property
    def needs_turn(self) -> bool:
        return bool(self.researcher) and not self.commit

    @classmethod
    def of(cls, record: AttemptRecord, number: int, seed: int, is_promotion: bool) -> "Next":
        """The same choice again."""
        version = (record.researcher, record.commit, record.tree, record.why)
        return cls(number, record.params, seed, is_promotion, *version)


class Runner:
    """One study in one directory; `run` may be cut off at any moment and be called again by another process."""

    def __init__(
        self, directory: Path, study: Study, journal: Journal, meter: Meter,
        keys: Keys | None = None, launcher: Launcher | None = None, load: LoadSource | None = None,
    ) -> None:  # fmt: skip
        """`load` is asked where the study leaves open how many attempts run at once."""
        self._directory = directory.absolute()
        self._study = study
        self._journal = journal
        self._meter = meter
        self._keys = keys or OwnKey()
        self._launcher = launcher or LocalProcesses(study)
        self._proposer = Proposer(study)
        self._proposer.restore(journal.state.attempts)
        self._interrupted = [each for each in journal.state.attempts.values() if each.state not in ENDED]
        self._running: set[asyncio.Task[None]] = set()
        agent = study.agent
        self._researchers = Researchers(directory, study, agent, journal) if agent is not None else None
        self._packer = Packer(study, journal, load)

    async def run(self) -> None:
        """Until the budget is used up, nothing is left to try, or somebody stops it; running attempts end first."""
        async with asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(self._meter_for_ever()), tasks.create_task(self._packer.run())]
            while True:
                while len(self._running) < self._max_tasks and (upcoming := self._next()) is not None:
                    self._start(tasks, upcoming)
                if not self._running:
                    break
                await asyncio.wait((*self._running, self._packer.changed()), return_when=asyncio.FIRST_COMPLETED)
            for task in background:
                task.cancel()
        await self._read_meter()

    @property
    def _max_tasks(self) -> int:
        """Agents think while others' attempts run; those wait for a place."""
        return self._packer.wanted if self._study.agent is None else self._study.agent.researchers

    def _start(self, tasks: asyncio.TaskGroup, upcoming: Next) -> None:
        if upcoming.needs_turn:
            self._journal.append(
                "proposing", upcoming.number, researcher=upcoming.researcher, seed=upcoming.seed, at=time.time()
            )
            task = tasks.create_task(self._run_turn(upcoming))
        else:
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
            return Next.of(each, each.number, each.seed, each.is_promotion)
        number, budget = self._journal.state.next_number, self._study.budget
        num_again = (self._study.promote + bool(self._study.defaults)) * (len(self._study.seeds) - 1)
        num_promotions = min(num_again, budget.attempts - 1)
        state = self._journal.state
        explored = state.num_runs - sum(each.is_promotion for each in state.attempts.values())
        if explored < budget.attempts - num_promotions:
            upcoming = self._next_new(number)
            if upcoming is not None:
                return upcoming
        if any(not each.is_promotion and each.state not in ENDED for each in self._journal.state.attempts.values()):
            return None  # who is the best is known when all have ended
        return self._next_promotion(number)

    def _next_new(self, number: int) -> Next | None:
        """What was not tried before."""
        if self._study.agent is not None:
            return self._next_turn(number, self._study.agent)
        params = self._proposer.propose()
        return None if params is None else Next(number, params, self._study.seeds[0], is_promotion=False)

    def _next_turn(self, number: int, agent: AgentConfig) -> Next | None:
        """The program as it was first, which all are compared to, then a turn of a researcher."""
        assert self._researchers is not None
        state, seed = self._journal.state, self._study.seeds[0]
        if not state.attempts:
            version = self._researchers.baseline
            return Next(number, {}, seed, is_promotion=False, commit=version.commit, tree=version.tree)
        if state.attempts[1].state not in ENDED:
            return None
        researcher = next_researcher(agent, state)
        return None if researcher is None else Next(number, {}, seed, is_promotion=False, researcher=researcher)

    def _next_promotion(self, number: int) -> Next | None:
        attempts = self._journal.state.attempts.values()
        tried = {(each.choice, each.seed) for each in attempts}
        for record in promoted(self._study, attempts):
            for seed in self._study.seeds[1:]:
                if (record.choice, seed) not in tried:
                    return Next.of(record, number, seed, is_promotion=True)
        return None

    def _is_spent(self) -> bool:
        """Whether no attempt may begin."""
        is_full = self._journal.state.num_runs >= self._study.budget.attempts and not self._interrupted
        return is_full or self._is_used_up()

    def _is_used_up(self) -> bool:
        """Whether running attempts have to end too."""
        budget, used = self._study.budget, self._journal.state.usage
        return used.gpu_seconds >= (budget.gpu_seconds or math.inf) or used.tokens >= (budget.tokens or math.inf)

    def _begin(self, upcoming: Next) -> None:
        home = self._home(upcoming.number)
        home.mkdir(parents=True, exist_ok=True)
        given = {"params": upcoming.params, "seed": upcoming.seed, "project_id": self.project_id(upcoming.number)}
        _write_new(home / PARAMS_FILE, json.dumps(given, indent=2))
        again = self._journal.state.attempts.get(upcoming.number)
        known = again is not None and again.has_run
        version = {"researcher": upcoming.researcher, "commit": upcoming.commit, "tree": upcoming.tree}
        self._journal.append(
            "started", upcoming.number, params=upcoming.params, seed=upcoming.seed,
            is_promotion=upcoming.is_promotion, at=time.time(),
            **({**version, "why": upcoming.why} if upcoming.commit else {}),
        )  # fmt: skip
        if not known and not upcoming.is_promotion:
            self._proposer.begin(self._journal.state.attempts[upcoming.number])

    async def _run_turn(self, upcoming: Next) -> None:
        assert self._researchers is not None
        home = self._home(upcoming.number)
        home.mkdir(parents=True, exist_ok=True)
        try:
            found = await self._researchers.turn(upcoming.number, upcoming.researcher, home)
        except OpenRLError as error:
            found = NoChange("failed", str(error), "")
        if isinstance(found, NoChange):
            self._journal.append(
                "ended", upcoming.number, state=found.state, reason=found.reason, why=found.why, at=time.time()
            )
            _log.info("turn ended", attempt=upcoming.number, state=found.state, reason=found.reason)
            return
        changed = replace(upcoming, commit=found.version.commit, tree=found.version.tree, why=found.why)
        self._begin(changed)
        await self._run_attempt(changed)

    async def _run_attempt(self, upcoming: Next) -> None:
        home = self._home(upcoming.number)
        try:
            async with self._packer.place(upcoming.number), self._keys.key(self.project_id(upcoming.number)) as key:
                state, reason = await self._run_command(upcoming, home, key)
        except OpenRLError as error:
            state, reason = "failed", str(error)
        self._end(upcoming, state, reason)
        shutil.rmtree(home / "code", ignore_errors=True)

    async def _run_command(self, upcoming: Next, home: Path, key: str | None) -> tuple[AttemptState, str]:
        directory = self._directory
        if self._researchers is not None:
            directory = await self._researchers.checkout(upcoming.commit, home)
        if not await self._launcher.has(upcoming.number):
            for name in (REPORTS_FILE, STOP_FILE):
                (home / name).unlink(missing_ok=True)
        running = await self._launcher.start(upcoming.number, directory, home, self._variables(upcoming.number, key))
        try:
            return await self._watch(upcoming, running)
        finally:
            await running.release()

    def _variables(self, number: int, key: str | None) -> dict[str, str]:
        return {
            **({"TINKER_API_KEY": key} if key is not None else {}),
            DIRECTORY_VARIABLE: str(self._home(number)),
            "TINKER_PROJECT_ID": self.project_id(number),
        }

    async def _watch(self, upcoming: Next, running: Running) -> tuple[AttemptState, str]:
        """Follow the reports until the process ends."""
        deadline = time.monotonic() + self._study.attempt_timeout_s
        offset = 0
        stopped = "it was asked to before" if (self._home(upcoming.number) / STOP_FILE).exists() else ""
        while not running.ended.done():
            await asyncio.wait((running.ended,), timeout=_LOOK_S)
            if running.is_waiting and not stopped:
                deadline = time.monotonic() + self._study.attempt_timeout_s
            offset, should_stop = self._take_reports(upcoming, offset)
            if not stopped and (should_stop or self._is_used_up()):
                stopped = "not among the best of its rung" if should_stop else "the budget is used up"
                (self._home(upcoming.number) / STOP_FILE).touch()
                deadline = min(deadline, time.monotonic() + _STOP_S)
            if time.monotonic() > deadline:
                await running.end()
                if not stopped:
                    return "failed", f"not over after attempt_timeout_s = {self._study.attempt_timeout_s:g} s"
        self._take_reports(upcoming, offset)
        if stopped:
            return "stopped", stopped
        status = await running.ended
        if status:
            return "failed", f"exit status {status}: {_last_line(self._home(upcoming.number) / 'log.txt')}"
        record = self._journal.state.attempts[upcoming.number]
        for each in self._study.goals:
            if record.value(each.metric) is None:
                return "failed", f"it reported no {each.metric}"
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


def _write_new(path: Path, text: str) -> None:
    """An attempt that goes on may be reading it."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _last_line(path: Path) -> str:
    return last_lines(path, 1, 500) or "no output"
