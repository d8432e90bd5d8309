"""The messages between scheduler and workers.

Commands go to a worker and are started in the order sent. Reports come back. Payloads and results
never travel here: a message carries references into the blob store.
"""

from dataclasses import dataclass

from openrl.config import WorkerRole
from openrl.errors import ErrorCategory
from openrl.protocol.runs import CheckpointKind, RequestKind, RunSpec, SamplerSpec, TrainingKind


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One request to run. `is_replay` rebuilds state: no result is stored, none reported.

    `has_failed`: a replayed optim_step that failed; only the gradient that it used up is dropped again.
    """

    request_id: str
    tenant_id: str
    kind: RequestKind
    payload_ref: str
    run_id: str = ""  # training requests
    seq_id: int = 0
    sampler: SamplerSpec | None = None  # sample requests
    is_replay: bool = False
    has_failed: bool = False
    created_at: float = 0.0  # by the clock of the gateway that took it
    trace_context: str | None = None  # W3C traceparent of the call that made it; not of replays


@dataclass(frozen=True, slots=True)
class OpenRun:
    """Have the run in memory: from its snapshot, or from its seed where there is none."""

    run: RunSpec
    snapshot_key: str | None
    snapshot_seq_id: int  # requests up to here are in the snapshot; -1 where there is none


@dataclass(frozen=True, slots=True)
class CloseRun:
    """Forget the run and free its memory."""

    run_id: str


@dataclass(frozen=True, slots=True)
class SnapshotRun:
    """Persist the run as it is after the requests sent before this command."""

    run_id: str


@dataclass(frozen=True, slots=True)
class Execute:
    """Run training requests of one kind together; items of one run are in `seq_id` order."""

    work_id: int
    kind: TrainingKind
    items: tuple[WorkItem, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """Add a request to the running batch."""

    item: WorkItem


@dataclass(frozen=True, slots=True)
class Cancel:
    """Drop a sample request that nobody waits for; no report follows if it was still there."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Ping:
    """The scheduler lives; sent every few seconds."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Finish what is in hand, report it, exit."""


@dataclass(frozen=True, slots=True)
class SetTenantShares:
    """How tenants share the device from here on; those that are not named weigh 1."""

    tenant_shares: dict[str, float]


@dataclass(frozen=True, slots=True)
class SetDraining:
    """Be drained, or be so no longer: `WorkerReady.knows_draining` says whether a worker takes this."""

    is_draining: bool


Command = OpenRun | CloseRun | SnapshotRun | Execute | Sample | Cancel | SetTenantShares | SetDraining | Ping | Shutdown


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """Files that are complete and durable under `key`."""

    run_id: str
    kind: CheckpointKind
    name: str  # "" for an unnamed sampler save
    key: str
    size_bytes: int
    expires_at: float | None = None
    user_metadata: dict[str, str] | None = None
    may_replace: bool = True  # otherwise the request fails if the name is taken by then
    sampler_id: str = ""  # of an unnamed sampler save: the sampling session that comes into being
    sampling_session_seq_id: int = -1


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request ended. Exactly one of `result_ref` and `error` is set (replays: neither)."""

    request_id: str
    result_ref: str = ""
    error: str = ""
    category: ErrorCategory = "unknown"
    checkpoint: SavedCheckpoint | None = None
    num_tokens: int = 0
    num_sampled_tokens: int = 0
    num_cached_tokens: int = 0
    busy_s: float = 0.0  # device seconds, shared out by tokens where requests were packed
    wall_s: float = 0.0  # from the start of its execution to its end


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """First report of a worker: it serves these models from now on.

    Fields with a default are unknown to workers of earlier versions, and to schedulers of theirs, which ignore them.
    """

    worker_id: str
    base_models: tuple[str, ...]
    max_pass_tokens: int  # training tokens per Execute that fill the device
    max_sequences: int  # sequences decoded at once
    pool: str = "default"
    role: WorkerRole = "both"
    is_draining: bool = False  # it was drained under an earlier scheduler, and stays so
    knows_draining: bool = False


@dataclass(frozen=True, slots=True)
class ExecuteDone:
    """An Execute ended; one outcome per item, in order."""

    work_id: int
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class SampleDone:
    """Sample requests that ended since the last report."""

    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class RunSnapshotted:
    """A run's state after request `seq_id` is durable under `key`."""

    run_id: str
    seq_id: int
    key: str
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RunLost:
    """The worker could not open or snapshot the run; its requests fail with this error."""

    run_id: str
    error: str


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """Heartbeat, about once a second."""

    busy_train_s: float
    busy_sample_s: float
    num_running_sequences: int
    num_waiting_sequences: int
    kv_blocks_used: int
    kv_blocks_total: int
    resident_runs: int
    step_age_s: float = 0.0  # how long the compute thread has been in its present step; 0 while there is nothing to do


@dataclass(frozen=True, slots=True)
class WorkerDraining:
    """Send nothing new and take the worker's runs elsewhere; then Shutdown, unless it `stays`."""

    stays: bool = False


@dataclass(frozen=True, slots=True)
class WorkerLeaving:
    """Last report of a worker that was told to shut down: all it had is reported."""


Report = (
    WorkerReady | ExecuteDone | SampleDone | RunSnapshotted | RunLost | WorkerStats | WorkerDraining | WorkerLeaving
)
