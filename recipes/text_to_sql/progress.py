"""Shows what the demo is doing, and keeps what it measured."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One training step. `value` is what the phase watches: the loss per token, or the mean reward."""

    phase: str
    step: int
    elapsed_s: float  # since the demo began
    value: float
    accuracy: float | None  # share of right samples; None in the warm-up
    tokens_per_s: float
    logprob_gap: float | None = None  # mean distance of trainer and sampler


@dataclass(slots=True)
class Phase:
    """A part of the demo with a known number of steps."""

    name: str
    progress: Progress
    task: TaskID
    started_s: float
    records: list[StepRecord]
    begin_s: float
    num_steps: int = 0
    last_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.last_s = self.started_s

    def step(
        self, value: float, num_tokens: int, accuracy: float | None = None, logprob_gap: float | None = None
    ) -> None:
        """Record one finished step."""
        now = time.monotonic()
        self.num_steps += 1
        rate = num_tokens / max(now - self.last_s, 1e-9)
        self.last_s = now
        record = StepRecord(self.name, self.num_steps, now - self.begin_s, value, accuracy, rate, logprob_gap)
        self.records.append(record)
        self.progress.update(self.task, advance=1, stats=_stats(record))
        if not self.progress.console.is_terminal:  # a log file has no live bar
            gap = "" if logprob_gap is None else f"  trainer-sampler {logprob_gap:.0e}"
            print(f"{record.elapsed_s:6.0f} s  {self.name:14} {record.step:3}  {_stats(record)}{gap}", flush=True)


class Monitor:
    """Live bars for a terminal, lines for a log file, records for the report."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.records: list[StepRecord] = []
        self._begin_s = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description:14}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[stats]}"),
            console=console,
        )

    @property
    def elapsed_s(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._begin_s

    @contextmanager
    def shown(self) -> Generator["Monitor"]:
        """Show the bars while the demo runs."""
        with self._progress:
            yield self

    def phase(self, name: str, num_steps: int) -> Phase:
        """Begin a part of the demo."""
        task = self._progress.add_task(name, total=num_steps, stats="")
        return Phase(name, self._progress, task, time.monotonic(), self.records, self._begin_s)

    def note(self, text: str) -> None:
        """Print one line above the bars."""
        self.console.print(f"{self.elapsed_s:6.0f} s  {text}", highlight=False)


def _stats(record: StepRecord) -> str:
    """Short: a line of 80 columns has 27 for it."""
    watched = f"loss {record.value:.3f}" if record.accuracy is None else f"reward {record.value:.2f}"
    return f"{watched}  {record.tokens_per_s:.0f} tok/s"
