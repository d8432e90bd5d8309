"""Follows a study's journal as it grows, reading only what is new."""

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from openrl.errors import BadValue, InvalidRequest
from openrl.research.journal import JOURNAL_FILE, AttemptRecord, StudyState, is_running
from openrl.research.study import STUDY_FILE, Study, load_study


@dataclass(frozen=True, slots=True)
class Cursor:
    """How much of a study somebody has seen."""

    origin: int  # checksum of study.toml and of the journal's first line: another study has another
    lines: int  # of the journal

    def __str__(self) -> str:
        return f"{self.origin:08x}-{self.lines}"

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Raises BadValue."""
        found = re.fullmatch(r"([0-9a-f]{8})-([0-9]{1,15})", text)
        if found is None:
            raise BadValue("after", text, "the `cursor` of an earlier reply")
        return cls(int(found[1], 16), int(found[2]))


class Follower:
    """One study; not for two threads at once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._journal = directory / JOURNAL_FILE
        self._start_again()

    def _start_again(self) -> None:
        self._state = StudyState()
        self._changed: dict[int, int] = {}  # by attempt: the last line about it
        self._offset = self._lines = self._first = self._inode = 0

    def read(self) -> None:
        """Take in what was written since. Raises InvalidRequest for a file that is no study or no journal."""
        self.study: Study = load_study(self.directory)
        self._settings = zlib.crc32((self.directory / STUDY_FILE).read_bytes())
        self.is_running = False
        if not self._journal.exists():
            self._start_again()
            return
        self.is_running = is_running(self._journal)
        with self._journal.open("rb") as file:
            status = self._journal.stat()
            if status.st_ino != self._inode or status.st_size < self._offset:
                self._start_again()
                self._inode = status.st_ino
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # half written
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            event: Mapping[str, Any] = json.loads(line)
            self._state.apply(event)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            number = self._lines + 1
            self._start_again()
            raise InvalidRequest(f"line {number} of {self._journal} is not an event: {error}") from error
        if self._lines == 0:
            self._first = zlib.crc32(line)
        self._lines += 1
        self._offset += len(line)
        if isinstance(number := event.get("attempt"), int):
            self._changed[number] = self._lines

    @property
    def cursor(self) -> Cursor:
        """Of all that was read."""
        return Cursor(self._settings ^ self._first, self._lines)

    @property
    def state(self) -> StudyState:
        """As `read_state` gives it."""
        attempts = {number: self._seen(each) for number, each in self._state.attempts.items()}
        return StudyState(attempts, self._state.packings)

    def changed_since(self, after: Cursor | None) -> list[int] | None:
        """Attempts that whoever saw `after` has to see again; None: all of them, and those it had are void.

        Attempts that run are always among them: whether they do is not in the journal.
        """
        if after is None or after.origin != self.cursor.origin or after.lines > self._lines:
            return None
        attempts = self._state.attempts
        return [
            number
            for number, line in self._changed.items()
            if number in attempts and (line > after.lines or attempts[number].state == "running")
        ]

    def _seen(self, each: AttemptRecord) -> AttemptRecord:
        return replace(each, state="interrupted") if each.state == "running" and not self.is_running else each
