"""Finds the studies of a directory and answers what the pages ask about them."""

import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from openrl.errors import InvalidRequest, NotFound
from openrl.research.journal import ENDED, StudyState
from openrl.research.pages.attempt_files import attempt_files
from openrl.research.pages.follower import Cursor, Follower
from openrl.research.pages.view import attempt_views, findings_view, study_view
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

    def study(self, name: str, after: Cursor | None) -> dict[str, object]:
        """The study, with those attempts that changed since `after`."""
        with self._lock:
            follower = self._read(name)
            state, changed = follower.state, follower.changed_since(after)
            shown = state.attempts.values() if changed is None else [state.attempts[each] for each in changed]
            return {
                "cursor": str(follower.cursor),
                "is_whole": changed is None,
                "study": study_view(
                    follower.study, state, is_running=follower.is_running, gpu_hour_price=self._price
                ),
                "attempts": attempt_views(follower.study, shown),
            }  # fmt: skip

    def findings(self, name: str) -> Mapping[str, object]:
        """Computed anew when another attempt has ended."""
        with self._lock:
            follower = self._read(name)
            study, state = follower.study, follower.state
            ended = (follower.cursor.origin, *(each.number for each in state.attempts.values() if each.state in ENDED))
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


def importances(study: Study, state: StudyState) -> dict[str, float]:
    """Of parameters, in shares of 1; none where Optuna is not installed."""
    if find_spec("optuna") is None:
        return {}
    from openrl.research.proposer import Proposer  # noqa: PLC0415  (needs the extra `research`)

    proposer = Proposer(study)
    proposer.restore(state.attempts)
    return proposer.importances()
