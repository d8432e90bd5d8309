"""Finds the studies of a directory and answers what the pages ask about them."""

import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from openrl.errors import InvalidRequest, NotFound
from openrl.research.journal import ENDED, AttemptRecord, StudyState
from openrl.research.pages.attempt_files import attempt_files
from openrl.research.pages.follower import Cursor, Follower
from openrl.research.pages.view import attempt_view, findings_view, study_view
from openrl.research.study import STUDY_FILE, Study


class Library:
    """The study in a directory and those in the directories right below it, each under its directory's name.

    A name is compared with those that are there, and never made part of a path. For several threads.
    """

    def __init__(self, directory: Path, gpu_hour_price: float | None = None) -> None:
        if not directory.is_dir():
            raise InvalidRequest(f"{directory} is no directory; it must be a study, or hold some")
        self._directory = directory
        self._price = gpu_hour_price
        self._followers: dict[str, Follower] = {}
        self._findings: dict[str, tuple[tuple[object, ...], Mapping[str, object]]] = {}
        self._texts: dict[str, dict[int, tuple[AttemptRecord, str]]] = {}  # of attempts as they were last asked for
        self._lock = threading.Lock()

    def studies(self) -> list[dict[str, object]]:
        """What the index shows; a study that cannot be read says why."""
        found: list[dict[str, object]] = []
        for name in sorted(self._directories()):
            with self._lock:
                try:
                    follower = self._read(name)
                    view = study_view(follower.study, follower.state, is_running=follower.is_running)
                except InvalidRequest as error:
                    found.append({"id": name, "error": str(error)})
                    continue
            shown = ("name", "state", "metric", "goal", "budget", "used", "best")
            found.append({"id": name, "error": None, **{key: view[key] for key in shown}})
        return found

    def version(self, name: str) -> str:
        """Changes when the study does."""
        with self._lock:
            follower = self._read(name)
            return f"{follower.cursor}-{'running' if follower.is_running else 'still'}"

    def study(self, name: str, after: Cursor | None) -> str:
        """JSON of the study, with those attempts that changed since `after`."""
        with self._lock:
            follower = self._read(name)
            state, changed = follower.state, follower.changed_since(after)
            shown = state.attempts.values() if changed is None else [state.attempts[each] for each in changed]
            view = study_view(follower.study, state, is_running=follower.is_running, gpu_hour_price=self._price)
            known = self._texts.setdefault(name, {})
            texts = [_attempt_text(follower.study, each, known) for each in sorted(shown, key=lambda each: each.number)]
            head = {"cursor": str(follower.cursor), "is_whole": changed is None, "study": view}
            return f'{as_json(head)[:-1]},"attempts":[{",".join(texts)}]}}'

    def findings(self, name: str) -> Mapping[str, object]:
        """Computed anew when another attempt has ended."""
        with self._lock:
            follower = self._read(name)
            study, state = follower.study, follower.state
            ended = (follower.cursor.origin, *_results(study, state))
            known = self._findings.get(name)
        if known is None or known[0] != ended:
            known = (ended, findings_view(study, state, importances(study, state)))
            with self._lock:
                self._findings[name] = known
        return known[1]

    def attempt(self, name: str, number: int) -> dict[str, object]:
        """Log and patch."""
        with self._lock:
            follower = self._read(name)
            if number not in follower.state.attempts:
                raise NotFound.of("attempt", str(number))
        return attempt_files(follower.directory, number)

    def _directories(self) -> dict[str, Path]:
        below = {each.name: each for each in self._directory.iterdir() if (each / STUDY_FILE).is_file()}
        own = {self._directory.resolve().name: self._directory} if (self._directory / STUDY_FILE).is_file() else {}
        return {**below, **own}

    def _read(self, name: str) -> Follower:
        directory = self._directories().get(name)
        if directory is None:
            raise NotFound.of("study", name)
        follower = self._followers.setdefault(name, Follower(directory))
        follower.read()
        return follower


def as_json(content: object) -> str:
    """Compact, and without what JSON has no words for."""
    return json.dumps(content, allow_nan=False, separators=(",", ":"))


def _attempt_text(study: Study, attempt: AttemptRecord, known: dict[int, tuple[AttemptRecord, str]]) -> str:
    """Records are replaced when they change, so the same record has the same text."""
    last = known.get(attempt.number)
    if last is None or last[0] is not attempt:
        last = known[attempt.number] = (attempt, as_json(attempt_view(study, attempt)))
    return last[1]


def _results(study: Study, state: StudyState) -> Iterator[tuple[object, ...]]:
    """What findings are made from."""
    for each in state.attempts.values():
        if each.state in ENDED:
            final = study.final_metric or study.metric
            yield each.number, each.state, each.value(study.metric), each.value(final)


def _last_report(study: Study, attempt: AttemptRecord) -> tuple[tuple[int, Mapping[str, float]], ...]:
    return tuple(report for report in attempt.reports if study.metric in report[1])[-1:]


def importances(study: Study, state: StudyState) -> dict[str, float]:
    """Of parameters, in shares of 1; none where Optuna is not installed."""
    if find_spec("optuna") is None:
        return {}
    from openrl.research.proposer import Proposer  # noqa: PLC0415  (needs the extra `research`)

    proposer = Proposer(study)
    # The last value is all that counts here: the steps before it would take Optuna seconds.
    proposer.restore(
        {number: replace(each, reports=_last_report(study, each)) for number, each in state.attempts.items()}
    )
    return proposer.importances()
