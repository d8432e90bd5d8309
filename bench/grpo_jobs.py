"""GRPO jobs on a virtual server: sample groups, score them, one step, a new snapshot, again.

A group is scored when its last sample is there; the step waits for the last group. Then forward_backward and
optim_step are sent together, and the snapshot after both. Lengths have a long tail.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.virtual_server import VirtualServer, Work
from openrl.protocol.runs import RequestKind, RunSpec, TrainingKind
from openrl.store.base import RequestRow, RunRow


@dataclass(frozen=True, slots=True)
class JobSpec:
    """The shape of one job."""

    num_groups: int = 8
    group_size: int = 8
    prompt_tokens: int = 256
    median_tokens: int = 128  # of a completion; lengths are log-normal
    max_tokens: int = 384
    reward_s: tuple[float, float] = (1.0, 3.0)
    straggler_share: float = 0.0  # of groups, whose reward takes straggler_s
    straggler_s: float = 15.0
    group_limit: int = 8192  # rows of a prefix group: datums of a group share their prompt


@dataclass(slots=True)
class StepPlan:
    """What one step will do, drawn from the job's seed and the step's number alone."""

    lengths: list[list[int]]
    rewards_s: list[float]
    group_rows: list[int]


def plan_step(spec: JobSpec, seed: int, step: int) -> StepPlan:
    """The same for the same arguments."""
    draw = random.Random(seed * 1_000_003 + step)
    lengths = [[_length(spec, draw) for _ in range(spec.group_size)] for _ in range(spec.num_groups)]
    rewards_s = [
        spec.straggler_s if draw.random() < spec.straggler_share else draw.uniform(*spec.reward_s)
        for _ in range(spec.num_groups)
    ]
    rows = [each for group in lengths for each in group_rows(spec, group)]
    return StepPlan(lengths, rewards_s, rows)


def _length(spec: JobSpec, draw: random.Random) -> int:
    length = round(spec.median_tokens * draw.lognormvariate(0.0, 0.6))
    return min(spec.max_tokens, max(1, length))


def group_rows(spec: JobSpec, lengths: Sequence[int]) -> list[int]:
    """Rows of the prefix groups that one prompt's datums form."""
    rows: list[int] = []
    for length in lengths:
        if rows and rows[-1] + length <= spec.group_limit:
            rows[-1] += length
        else:
            rows.append(spec.prompt_tokens + length)
    return rows


@dataclass(slots=True)
class GrpoJob:
    """One training run and its loop; starts when it is told to."""

    server: VirtualServer
    spec: JobSpec
    tenant_id: str
    number: int
    step_ends: list[float] = field(default_factory=list[float])
    started_at: float = 0.0
    _step: int = 0
    _seq_id: int = 0
    _num_open: int = 0
    _plan: StepPlan | None = None
    _sampler_id: str = ""

    @property
    def run_id(self) -> str:
        """Of its training run."""
        return f"run{self.number}"

    def start(self) -> None:
        """Create the run and a first snapshot, then loop for ever."""
        self.started_at = self.server.clock.now
        run = RunSpec(self.run_id, self.tenant_id, self.server.model, 32, 0, True, True, False)
        self.server.add_run(RunRow(run, f"session{self.number}", 0, 0.0, 0.0, {}))
        self._send("create_model", Work())
        self._save()

    def steps_between(self, start: float, end: float) -> int:
        """Steps that ended in this time."""
        return sum(start <= each < end for each in self.step_ends)

    def step_times(self, start: float, end: float) -> list[float]:
        """Seconds of the steps that lay wholly in this time."""
        pairs = zip(self.step_ends, self.step_ends[1:], strict=False)
        return [after - before for before, after in pairs if before >= start and after < end]

    def _save(self) -> None:
        self._sampler_id = f"{self.run_id}@{self._seq_id}"
        self._send("save_weights_for_sampler", Work())

    def _send(self, kind: TrainingKind, work: Work) -> None:
        row = self._row(f"{self.run_id}/{self._seq_id}", kind, sum(work.group_rows), 0)
        self._seq_id += 1
        self._num_open += 1
        self.server.submit(row, work, lambda: self._ended(kind))

    def _ended(self, kind: TrainingKind) -> None:
        self._num_open -= 1
        if self._num_open:
            return
        if kind == "save_weights_for_sampler" or kind == "create_model":
            if self._step:
                self.step_ends.append(self.server.clock.now)
            self._sample()
        else:
            self._save()

    def _sample(self) -> None:
        self._plan = plan_step(self.spec, self.number, self._step)
        self._step += 1
        self._num_open = self.spec.num_groups
        for group, lengths in enumerate(self._plan.lengths):
            name = f"{self.run_id}/sample/{self._step}/{group}"
            cost = self.spec.prompt_tokens + self.spec.max_tokens * len(lengths)
            row = self._row(name, "sample", cost, len(lengths))
            work = Work(prompt_tokens=self.spec.prompt_tokens, lengths=lengths)
            self.server.submit(row, work, lambda group=group: self._sampled(group))

    def _sampled(self, group: int) -> None:
        assert self._plan is not None
        self.server.after(self._plan.rewards_s[group], self._rewarded)

    def _rewarded(self) -> None:
        self._num_open -= 1
        if not self._num_open:
            assert self._plan is not None
            self._send("forward_backward", Work(group_rows=self._plan.group_rows))
            self._send("optim_step", Work())

    def _row(
        self,
        name: str,
        kind: RequestKind,
        num_tokens: int,
        num_sequences: int,
    ) -> RequestRow:
        is_sample = kind == "sample"
        return RequestRow(
            name,
            self.tenant_id,
            f"session{self.number}",
            kind,
            name,
            0 if is_sample else self._seq_id,
            self.server.clock.now,
            run_id="" if is_sample else self.run_id,
            sampler_id=self._sampler_id if is_sample else "",
            base_model=self.server.model,
            num_tokens=num_tokens,
            num_sequences=num_sequences,
        )
