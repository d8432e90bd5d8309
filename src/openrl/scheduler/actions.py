"""What must be done outside of the scheduler's state: the outputs of `SchedulerState.handle`.

Actions other than SendCommand take effect in the order given: a Finish is committed before a later
LoadRun reads the run, before a later RecordSnapshot covers it, before a later MarkRunClosed.
"""

from dataclasses import dataclass
from typing import Literal

from openrl.rpc.messages import Command, Outcome
from openrl.store.base import RequestRow
from openrl.store.quotas import UNBOUNDED, Bound


@dataclass(frozen=True, slots=True)
class SendCommand:
    """Give a worker something to do; commands to one worker keep their order."""

    worker_id: str
    command: Command


@dataclass(frozen=True, slots=True)
class Finish:
    """Record how a request ended and wake whoever waits for it."""

    request: RequestRow
    state: Literal["done", "failed", "cancelled"]
    outcome: Outcome
    base_model: str
    max_stored: Bound = UNBOUNDED  # what a save must fit into


@dataclass(frozen=True, slots=True)
class LoadRun:
    """Read a run's durable state; answered by RunLoaded."""

    run_id: str


@dataclass(frozen=True, slots=True)
class LoadSampler:
    """Read a sampler; answered by SamplerLoaded."""

    sampler_id: str
    tenant_id: str


@dataclass(frozen=True, slots=True)
class RecordSnapshot:
    """Point the run at its newer snapshot, then delete the older one's files."""

    run_id: str
    seq_id: int
    key: str
    old_key: str | None
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class MarkRunClosed:
    """The run takes no more requests; all it did is in its snapshot, if it did anything."""

    run_id: str
    tenant_id: str
    session_id: str
    snapshot_key: str | None


Action = SendCommand | Finish | LoadRun | LoadSampler | RecordSnapshot | MarkRunClosed
