"""Turns of agents: whose is next, and what comes of it."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from openrl.research.journal import ENDED, AttemptState, Journal, StudyState
from openrl.research.kept import kept
from openrl.research.processes import chosen_environment
from openrl.research.program import Program, Version
from openrl.research.prompt import write_prompt
from openrl.research.study import AgentConfig, Study
from openrl.research.turn import TurnLimits, last_lines, run_turn

PROGRAM_FILE = "program.md"
PATCH_FILE = "change.patch"
_MAX_WHY = 2000
_MAX_PATHS = 20
_WHY_LINES = 5


@dataclass(frozen=True, slots=True)
class Change:
    """A version to run."""

    version: Version
    why: str


@dataclass(frozen=True, slots=True)
class NoChange:
    """A turn that gave nothing to run."""

    state: AttemptState
    reason: str
    why: str


def next_researcher(agent: AgentConfig, state: StudyState) -> int | None:
    """The one with the fewest turns among those that have a turn left and nothing under way."""
    turns = dict.fromkeys(range(1, agent.researchers + 1), 0)
    for each in state.attempts.values():
        if not each.is_promotion and each.researcher in turns:
            turns[each.researcher] += 1 if each.state in ENDED else agent.attempts
    least = min(turns, key=lambda researcher: (turns[researcher], researcher))
    return least if turns[least] < agent.attempts else None


class Researchers:
    """Runs agents; the journal says what they have done, so that a turn may be cut off at any moment."""

    def __init__(self, directory: Path, study: Study, agent: AgentConfig, journal: Journal) -> None:
        self._directory = directory
        self._study = study
        self._agent = agent
        self._journal = journal
        self._program = Program(directory)
        self._git = asyncio.Lock()
        self.baseline = self._program.baseline()

    async def turn(self, number: int, researcher: int, home: Path) -> Change | NoChange:
        """From the best that the researcher has kept to a change of it."""
        best = kept(self._study, self._journal.state.attempts.values(), researcher)
        base = best[-1].commit if best else self.baseline.commit
        async with self._git:
            place = await asyncio.to_thread(self._program.open_worktree, researcher, base)
        why_file, output = home / "why.md", home / "agent.txt"
        why_file.unlink(missing_ok=True)
        prompt = self._write_prompt(researcher, home)
        fault = await run_turn(
            self._agent.command, place, self._environment(number, researcher, prompt, why_file), prompt, output,
            TurnLimits(self._agent.turn_timeout_s, self._agent.max_output_bytes),
        )  # fmt: skip
        why = (_read_why(why_file) or last_lines(output, _WHY_LINES))[:_MAX_WHY]
        if fault:
            return NoChange("failed", fault, why)
        async with self._git:
            found = await asyncio.to_thread(self._take, number, researcher, base, why, home)
        # Nobody else comes between this look and the line that the caller writes.
        attempts = self._journal.state.attempts.values()
        same = [each.number for each in attempts if isinstance(found, Change) and each.tree == found.version.tree]
        return NoChange("duplicate", f"the same program as attempt {min(same)}", why) if same else found

    async def checkout(self, commit: str, home: Path) -> Path:
        """The directory in which a version runs."""
        async with self._git:
            return await asyncio.to_thread(self._program.checkout, commit, home / "code")

    def _take(self, number: int, researcher: int, base: str, why: str, home: Path) -> Change | NoChange:
        """What the worktree has, checked and committed."""
        changed, outside = self._program.changes(researcher, base, self._agent.editable)
        if outside:
            return NoChange("refused", f"changed files that are not editable: {_show(outside)}", why)
        if not changed:
            return NoChange("duplicate", "no change", why)
        size = self._program.num_bytes(researcher, changed)
        if size > self._agent.max_output_bytes:
            limit = self._agent.max_output_bytes
            return NoChange("refused", f"changed files have {size} bytes, above max_output_bytes = {limit}", why)
        version = self._program.commit(researcher, base, changed, number, why or f"Attempt {number}")
        (home / PATCH_FILE).write_text(self._program.patch(base, version.commit), errors="surrogateescape")
        return Change(version, why)

    def _write_prompt(self, researcher: int, home: Path) -> Path:
        told = self._directory / PROGRAM_FILE
        program = told.read_text(errors="replace") if told.exists() else ""
        prompt = home / "prompt.md"
        prompt.write_text(write_prompt(self._study, self._agent, self._journal.state, researcher, program))
        return prompt

    def _environment(self, number: int, researcher: int, prompt: Path, why_file: Path) -> Mapping[str, str]:
        best = kept(self._study, self._journal.state.attempts.values(), researcher)
        return {
            **chosen_environment(os.environ, self._agent.environment),
            "OPENRL_STUDY": self._study.name,
            "OPENRL_RESEARCHER": str(researcher),
            "OPENRL_ATTEMPT": str(number),
            "OPENRL_METRIC": self._study.metric,
            "OPENRL_GOAL": self._study.goal,
            "OPENRL_BEST": "" if not best else str(best[-1].value(self._study.metric)),
            "OPENRL_EDITABLE": "\n".join(self._agent.editable),
            "OPENRL_PROMPT_FILE": str(prompt),
            "OPENRL_WHY_FILE": str(why_file),
        }


def _read_why(file: Path) -> str:
    if not file.is_file():
        return ""
    with file.open(errors="replace") as text:
        return text.read(_MAX_WHY).replace("\0", "").strip()


def _show(paths: list[str]) -> str:
    names = [each.encode(errors="backslashreplace").decode() for each in paths[:_MAX_PATHS]]
    return ", ".join(names) + (f" and {len(paths) - _MAX_PATHS} more" if len(paths) > _MAX_PATHS else "")
