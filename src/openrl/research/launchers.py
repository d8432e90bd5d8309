"""Where the command of an attempt runs: as a process of this machine, or elsewhere."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from openrl.research.processes import Kept, chosen_environment, start
from openrl.research.study import Study


class Running(Protocol):
    """A command that was started."""

    @property
    def ended(self) -> "asyncio.Future[int]":
        """Its exit status; the log is written then."""
        ...

    @property
    def is_waiting(self) -> bool:
        """Whether it has not begun yet, which takes none of its time."""
        ...

    async def end(self) -> None:
        """End it and all that it started."""
        ...

    async def release(self) -> None:
        """The runner looks no more: what cannot go on without it ends."""
        ...


class Launcher(Protocol):
    """Starts the commands of a study."""

    async def has(self, number: int) -> bool:
        """Whether the attempt was started by an earlier runner, and `start` would find it."""
        ...

    async def start(self, number: int, directory: Path, home: Path, variables: Mapping[str, str]) -> Running:
        """Run the study's command in `directory`, its output into log.txt of `home`. Raises OpenRLError."""
        ...


class LocalProcesses:
    """Attempts end with the runner."""

    def __init__(self, study: Study) -> None:
        self._study = study

    async def has(self, number: int) -> bool:  # noqa: ARG002
        return False

    async def start(self, number: int, directory: Path, home: Path, variables: Mapping[str, str]) -> Kept:  # noqa: ARG002
        with (home / "log.txt").open("ab") as log:
            return await start(self._study.command, directory, {**self._inherited(), **variables}, stdout=log)

    def _inherited(self) -> dict[str, str]:
        names = self._study.environment
        if names is None and self._study.agent is None:
            return dict(os.environ)
        return chosen_environment(os.environ, (*(names or ()), "TINKER_BASE_URL", "TINKER_API_KEY"))
