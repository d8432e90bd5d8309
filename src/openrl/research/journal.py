"""What happened in a study: a file of JSON lines that is only ever appended to, and the state that it amounts to."""

import fcntl
import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

from openrl.errors import InvalidRequest
from openrl.research.study import Params

JOURNAL_FILE = "journal.jsonl"
_FLOCK = "@hhqqi4x"
AttemptState = Literal["proposing", "running", "interrupted", "done", "stopped", "failed", "refused", "duplicate"]
"""An agent is proposing; what it changed may be refused, or be a duplicate of what was tried."""
ENDED = ("done", "stopped", "failed", "refused", "duplicate")


@dataclass(frozen=True, slots=True)
class Usage:
    """What the server metered."""

    gpu_seconds: float = 0.0
    tokens: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.gpu_seconds + other.gpu_seconds, self.tokens + other.tokens)


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt as the journal knows it."""

    number: int
    params: Params
    seed: int
    is_promotion: bool = False
    state: AttemptState = "running"
    reports: tuple[tuple[int, Mapping[str, float]], ...] = ()  # step and values, in order
    usage: Usage = Usage()
    started_at: float = 0.0
    ended_at: float | None = None
    reason: str = ""  # of a failure, stop or refusal
    researcher: int = 0  # whose version of the program it is; 0: the program as it was
    commit: str = ""  # of that version, and its content
    tree: str = ""
    why: str = ""  # in the agent's words
    has_run: bool = True  # or is to; a proposal that came to nothing has not

    @property
    def choice(self) -> str:
        """What tells it from other attempts but for the seed."""
        return f"{sorted(self.params.items())}{self.tree}"

    def value(self, metric: str) -> float | None:
        """The last report of a metric."""
        return next((values[metric] for _, values in reversed(self.reports) if metric in values), None)


@dataclass(frozen=True, slots=True)
class PackingRecord:
    """A decision of how many attempts run at once."""

    at: float
    wanted: int
    why: str
    num_running: int
    device_duty: float | None  # that the server told of then
    queue_wait_s: float | None


@dataclass(slots=True)
class StudyState:
    """All attempts by number."""

    attempts: dict[int, AttemptRecord] = field(default_factory=dict[int, AttemptRecord])
    packings: list[PackingRecord] = field(default_factory=list[PackingRecord])  # where `parallel` is "auto"

    def apply(self, event: Mapping[str, Any]) -> None:
        """One line of the journal; what is about no attempt has the number 0."""
        number: int = event["attempt"]
        match event["event"]:
            case "proposing":
                self.attempts[number] = AttemptRecord(
                    number, {}, event["seed"], state="proposing", started_at=event["at"],
                    researcher=event["researcher"], has_run=False,
                )  # fmt: skip
            case "started":
                again = self.attempts.get(number)
                fresh = AttemptRecord(number, event["params"], event["seed"], event["is_promotion"])
                reports, usage = (again.reports, again.usage) if again else ((), Usage())
                version = {name: event[name] for name in ("researcher", "commit", "tree", "why") if name in event}
                self.attempts[number] = replace(
                    fresh, started_at=event["at"], reports=reports, usage=usage, **version
                )  # fmt: skip
            case "reported":
                now = self.attempts[number]
                self.attempts[number] = replace(now, reports=(*now.reports, (event["step"], event["values"])))
            case "metered":
                usage = Usage(event["gpu_seconds"], event["tokens"])
                self.attempts[number] = replace(self.attempts[number], usage=usage)
            case "ended":
                now = self.attempts[number]
                why = event.get("why", now.why)
                ended = replace(now, state=event["state"], ended_at=event["at"], reason=event["reason"], why=why)
                self.attempts[number] = ended
            case "packed":
                signals = event.get("device_duty"), event.get("queue_wait_s")
                packing = PackingRecord(event["at"], event["wanted"], event["why"], event["num_running"], *signals)
                self.packings.append(packing)
            case _:
                raise InvalidRequest(f"event {event['event']!r} in the journal is not of this version")

    @property
    def packing(self) -> PackingRecord | None:
        """The last decision."""
        return self.packings[-1] if self.packings else None

    @property
    def usage(self) -> Usage:
        return sum((each.usage for each in self.attempts.values()), Usage())

    @property
    def num_runs(self) -> int:
        """Attempts that ran, or may yet."""
        return sum(each.has_run or each.state == "proposing" for each in self.attempts.values())

    @property
    def next_number(self) -> int:
        return max(self.attempts, default=0) + 1


def replay(events: Iterable[Mapping[str, Any]]) -> StudyState:
    """The state after these events."""
    state = StudyState()
    for event in events:
        state.apply(event)
    return state


class Journal:
    """The open file of one runner; a second runner of the same study is refused.

    Every event is on the disk when `append` returns. What a crash left half written at the end is cut off.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / JOURNAL_FILE
        self._file: IO[bytes] = self._path.open("ab+")
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK))
        except OSError:
            self._file.close()
            raise InvalidRequest(f"another process runs the study in {directory}") from None
        whole = _whole_lines(self._path)
        self._file.truncate(sum(map(len, whole)))
        self.state = replay(map(json.loads, whole))

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, event: str, attempt: int, **fields: object) -> None:
        """Write an event down and apply it."""
        record = {"event": event, "attempt": attempt, **fields}
        line = json.dumps(record).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.state.apply(json.loads(line))


def read_state(directory: Path) -> StudyState:
    """What a study has come to, also while somebody runs it; attempts that nobody runs are interrupted."""
    path = directory / JOURNAL_FILE
    if not path.exists():
        return StudyState()
    state = replay(map(json.loads, _whole_lines(path)))
    if not is_running(path):
        for number, each in state.attempts.items():
            if each.state in ("running", "proposing"):
                state.attempts[number] = replace(each, state="interrupted")
    return state


def is_running(path: Path) -> bool:
    """Whether a runner holds the lock; asking takes none."""
    with path.open("rb") as file:
        answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK))
    return struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK


def _flock(kind: int) -> bytes:
    """Of the whole file; fcntl(2)'s struct of locks that belong to the open file and not to the process."""
    return struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0)


def _whole_lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
