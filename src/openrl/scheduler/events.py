"""What can happen to the scheduler: the inputs of `SchedulerState.handle`."""

from dataclasses import dataclass

from openrl.protocol.runs import SamplerSpec
from openrl.rpc.messages import ExecuteDone, RunLost, RunSnapshotted, SampleDone, WorkerDraining, WorkerReady
from openrl.store.base import RequestRow, RunRow
from openrl.store.ledger import DEFAULT_PROJECT
from openrl.store.quotas import DeviceUse, QuotaRow


@dataclass(frozen=True, slots=True)
class RequestsArrived:
    """Rows that were committed together; also the backlog after a restart. Repeats are harmless."""

    requests: tuple[RequestRow, ...]


@dataclass(frozen=True, slots=True)
class RequestCancelled:
    """Nobody waits for this request any more."""

    request_id: str


@dataclass(frozen=True, slots=True)
class RunLoaded:
    """Answer to LoadRun: the run's durable state. `run` is None when there is no such run."""

    run_id: str
    run: RunRow | None
    next_seq: int = 0  # the smallest number that has not finished
    finished: frozenset[int] = frozenset()  # larger numbers that have
    log: tuple[RequestRow, ...] = ()  # what a replay on top of the snapshot must run, in order
    project_id: str = DEFAULT_PROJECT  # of its session


@dataclass(frozen=True, slots=True)
class SamplerLoaded:
    """Answer to LoadSampler; `spec` is None when there is no such sampler."""

    sampler_id: str
    spec: SamplerSpec | None
    session_id: str = ""
    project_id: str = DEFAULT_PROJECT


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker can take commands. It holds no runs: a worker that returns is a new worker."""

    worker_id: str
    ready: WorkerReady


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """The connection to a worker ended; what it held in memory is lost."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class WorkerReported:
    """A report that says how commands ended, or that no more should come."""

    worker_id: str
    report: ExecuteDone | SampleDone | RunSnapshotted | RunLost | WorkerDraining


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """An operator wants the worker of this name to be empty and to stay so, or to be used again."""

    name: str
    is_draining: bool


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """The client is gone: its samples are dropped, its runs finish what they can, are saved and closed."""

    session_id: str
    run_ids: tuple[str, ...]  # its runs that are not closed


@dataclass(frozen=True, slots=True)
class QuotasRead:
    """All quotas that are set; the first time also the device time that was used before, which is counted here then."""

    quotas: tuple[QuotaRow, ...]
    used_this_month: tuple[DeviceUse, ...] = ()
    used_today: tuple[DeviceUse, ...] = ()


@dataclass(frozen=True, slots=True)
class PauseOver:
    """The time has come that `SchedulerState.wakes_at` told."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; sent every few seconds."""


Event = (
    RequestsArrived
    | RequestCancelled
    | RunLoaded
    | SamplerLoaded
    | WorkerJoined
    | WorkerGone
    | WorkerReported
    | DrainAsked
    | SessionClosed
    | QuotasRead
    | PauseOver
    | Tick
)
