"""The contract of what the processes of one store tell each other: who leads, how it goes, what has happened.

The rules of `Store` hold. Leases are timed by the database's clock: a jump of a client's clock does not matter.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from openrl.config import WorkerRole

SignalKind = Literal["cancel", "session_ended", "keys_changed", "quotas_changed", "drain_worker", "resume_worker"]
PauseState = Literal["paused_capacity", "paused_rate_limit"]
WorkerState = Literal["working", "draining", "drained"]
Side = Literal["train", "sample"]


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to do what only one process may do."""

    name: str  # "scheduler"
    holder: str  # unique per process start
    epoch: int  # grows by one with every change of holder
    expires_in_s: float  # on the database's clock, at the moment of the answer
    address: str  # where the holder can be reached ("tcp:host:port")


@dataclass(frozen=True, slots=True)
class Pause:
    """Why the requests of a tenant wait."""

    state: PauseState
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A connected worker and what it holds."""

    name: str
    pool: str
    role: WorkerRole
    base_models: tuple[str, ...]
    state: WorkerState  # "drained": it is to stay empty, and is
    num_runs: int
    num_requests: int  # sent there and not ended

    def serves(self, base_model: str, side: Side) -> bool:
        """Whether it takes requests of this kind."""
        return self.state == "working" and base_model in self.base_models and self.role in (side, "both")


@dataclass(frozen=True, slots=True)
class Load:
    """How full the installation is, all tenants together."""

    device_duty: float | None = None  # 0 to 1: lately, the mean over workers; None while none has told
    queue_wait_s: float = 0.0  # of what could be sent if a worker had room, how long the first has waited


@dataclass(frozen=True, slots=True)
class SchedulerStatus:
    """What others want to know of the scheduler."""

    base_models: tuple[str, ...] = ()  # that connected workers train and sample
    pauses: Mapping[str, Pause] = field(default_factory=dict[str, Pause])  # by tenant id
    num_workers: int = 0
    workers: tuple[WorkerStatus, ...] = ()
    load: Load = Load()

    def serves(self, base_model: str, side: Side) -> bool:
        """Whether a worker takes requests of this kind."""
        return base_model in self.base_models or any(each.serves(base_model, side) for each in self.workers)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a tenant has for one base model that a worker must be there for."""

    base_model: str
    tenant_id: str
    side: Side
    num_requests: int = 0  # accepted and not ended
    num_tokens: int = 0  # of these
    oldest_at: float | None = None  # when the first of them came
    num_live: int = 0  # training runs that are not closed; sessions that are active and have samplers


@dataclass(frozen=True, slots=True)
class HourOfWork:
    """What all workers together did for a base model in one hour."""

    base_model: str
    side: Side
    hour: int  # since the epoch
    num_tokens: int  # trained; or sampled, with prompts, cached or not
    busy_s: float  # device time


@dataclass(frozen=True, slots=True)
class Signal:
    """Something that other processes want to hear of at once."""

    kind: SignalKind
    subject: str  # id of what it is about


class Cluster(Protocol):
    """See the module docstring for what holds for every method."""

    @property
    def is_shared(self) -> bool:
        """Whether several processes may take requests over the store at once."""
        ...

    async def acquire_lease(self, name: str, holder: str, address: str, ttl_s: float) -> Lease | None:
        """None while somebody else holds it; the holder itself gets it again, with the same epoch."""
        ...

    async def renew_lease(self, lease: Lease, ttl_s: float) -> Lease:
        """Raises LeaseLost when the lease was released, or another holder had it since.

        An expired lease that nobody else has taken can be renewed.
        """
        ...

    async def release_lease(self, lease: Lease) -> None:
        """Others may have it at once; a lease that is lost stays as it is."""
        ...

    async def read_lease(self, name: str) -> Lease | None:
        """None if it is free or has expired."""
        ...

    def fence(self, lease: Lease) -> None:
        """From here on writes of this store object check, in their transaction, that nobody has had the lease since.

        Otherwise they raise LeaseLost and change nothing. Calls about leases themselves go on.
        """
        ...

    async def publish_status(self, status: SchedulerStatus) -> None:
        """Replace the status. It is one of the lease that this store object is fenced by, if it is."""
        ...

    async def status(self) -> SchedulerStatus:
        """What was published last; the empty status when its lease has expired or changed hands."""
        ...

    async def demand(self) -> tuple[Demand, ...]:
        """Of all tenants, in order of base model, tenant and side."""
        ...

    async def work(self, first_hour: int, end_hour: int) -> tuple[HourOfWork, ...]:
        """Of the hours from `first_hour` to before `end_hour`, all tenants together, in order of model, side, hour."""
        ...

    async def tell(self, signal: Signal) -> None:
        """Reaches all processes of the store, this one too. Best effort: it may be lost."""
        ...

    def signals(self) -> AsyncIterator[Signal]:
        """What is told from the first step of the iteration on; ends when the store closes."""
        ...
