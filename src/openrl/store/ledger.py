"""The contract of the ledger: what tenants and operators ask about their own past.

The rules of `Store` hold: tenants see their own rows only, a method returns after its effect is durable, times
are seconds since the epoch. Rows of usage and of the audit log are written by `Store`, in the transaction of what
they report.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from openrl.protocol.runs import RequestKind

DEFAULT_PROJECT = "default"
"""Where sessions are that name no project."""
HOUR_S = 3600.0
AuditCategory = Literal["checkpoints", "projects", "organizations"]
UsageKind = Literal["training", "prefill", "cached_prefill", "sample", "checkpoint"]


@dataclass(frozen=True, slots=True)
class StatusQuery:
    """Sessions in this state; of finished ones only those with these reasons, if any are given."""

    state: Literal["active", "finished", "cancelled", "failed"]
    reasons: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class SessionQuery:
    """What a session must be to be found; None and empty fields ask for nothing.

    With both `session_id` and `display_words`, either suffices.
    """

    tenant_id: str
    limit: int
    session_id: str | None = None
    project_ids: tuple[str, ...] | None = None
    user_metadata: tuple[tuple[str, str], ...] = ()
    display_words: tuple[str, ...] = ()
    statuses: tuple[StatusQuery, ...] | None = None
    after: tuple[float, str] | None = None  # creation time and id of the last one seen; the id decides if it is known


@dataclass(frozen=True, slots=True)
class SessionSummary:
    """A session and what it keeps."""

    session_id: str
    created_at: float
    project_id: str
    state: str
    end_reason: str | None
    display_name: str | None
    user_metadata: dict[str, Any] | None
    num_checkpoints: int
    checkpoint_bytes: int


@dataclass(frozen=True, slots=True)
class ProjectSummary:
    """A project and what is in it."""

    project_id: str
    created_at: float
    num_sessions: int
    num_runs: int
    num_checkpoints: int
    checkpoint_bytes: int


@dataclass(frozen=True, slots=True)
class UsageRow:
    """How much of one kind ran in one hour; `hour` counts hours since the epoch."""

    hour: int
    session_id: str
    base_model: str
    kind: UsageKind
    amount: int  # tokens; checkpoints of kind "checkpoint"
    project_id: str = DEFAULT_PROJECT  # where the session is at the time of asking
    busy_us: int = 0  # device time


@dataclass(frozen=True, slots=True)
class Spending:
    """How much of one kind ran in a stretch of time, and the device time that it took.

    Time of samples is with kind "sample", of saves with "checkpoint", of all else with "training".
    """

    tenant_id: str
    project_id: str  # where the session is at the time of asking
    user_id: str  # who made the session; empty if that is not known
    session_id: str
    run_id: str  # empty: samples of weights that no run of the session made
    base_model: str
    kind: UsageKind
    amount: int
    busy_us: int


@dataclass(frozen=True, slots=True)
class UsageReport:
    """Usage in order of hour, and the metadata of every session in it."""

    rows: tuple[UsageRow, ...]
    sessions: dict[str, dict[str, Any] | None]


@dataclass(frozen=True, slots=True)
class StorageSpan:
    """Bytes of one checkpoint and when they were held; `until` is None while they are."""

    project_id: str
    base_model: str
    size_bytes: int
    since: float
    until: float | None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Something that was done to a tenant's things."""

    created_at: float
    category: AuditCategory
    event: str  # <resource>_<action>
    details: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """When a request waited and when it ran."""

    request_id: str
    kind: str
    seq_id: int
    run_id: str
    sampler_id: str
    state: str
    created_at: float
    finished_at: float | None
    wall_s: float  # from the start of its execution to its end
    busy_s: float  # its share of the device in that time
    num_tokens: int
    num_sampled_tokens: int
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class RequestLoad:
    """What was asked of a worker, and what it came to."""

    kind: RequestKind
    base_model: str
    run_id: str  # empty: a sample
    created_at: float
    finished_at: float | None
    num_tokens: int  # as admission estimated it
    used_tokens: int  # as the worker counted them
    busy_s: float  # device time


@dataclass(frozen=True, slots=True)
class SessionLoad:
    """A client and what it asked for in a stretch of time, in the order of acceptance."""

    session_id: str
    tenant_id: str
    created_at: float
    ended_at: float | None  # its last sign of life; None while it is active
    requests: tuple[RequestLoad, ...]


def to_us(seconds: float) -> int:
    """Microseconds: whole numbers, whose sums do not depend on their order."""
    return round(seconds * 1e6)


class TenantLedger(Protocol):
    """What the gateway may ask and do: every look-up carries the tenant. See the module docstring for the rest."""

    async def search_sessions(self, query: SessionQuery) -> tuple[SessionSummary, ...]:
        """Matching sessions, newest first; raises NotFound for a project that the tenant does not have."""
        ...

    async def assign_project(self, tenant_id: str, session_id: str, project_id: str, now: float) -> None:
        """Move a session; the project comes into being if this is the first that is heard of it."""
        ...

    async def list_projects(self, tenant_id: str) -> tuple[ProjectSummary, ...]:
        """The tenant's projects, oldest first."""
        ...

    async def usage(self, tenant_id: str, first_hour: int, end_hour: int) -> UsageReport:
        """Usage of the hours from `first_hour` to before `end_hour`."""
        ...

    async def storage(self, tenant_id: str, since: float, until: float) -> tuple[StorageSpan, ...]:
        """Checkpoints that were held at some time between the bounds; expired ones only until they expired."""
        ...

    async def audit_log(
        self, tenant_id: str, category: AuditCategory | None, since: float, until: float
    ) -> tuple[AuditEntry, ...]:
        """Entries from `since` to before `until`, oldest first."""
        ...

    async def note_loss_use(self, key: str, tenant_id: str, session_id: str, now: float) -> None:
        """A session has created or called the custom loss under an object key."""
        ...

    async def trace_version(self, tenant_id: str, session_id: str) -> tuple[int, int]:
        """How many requests of a session there are, and how many have ended."""
        ...

    async def trace(self, tenant_id: str, session_id: str, limit: int) -> tuple[TracedRequest, ...]:
        """The newest requests of a session, oldest first."""
        ...


class Ledger(TenantLedger, Protocol):
    """What sweeps and operators do besides, over all tenants; the gateway does not."""

    async def spending(self, tenant_id: str | None, first_hour: int, end_hour: int) -> tuple[Spending, ...]:
        """What a tenant, or all, used in the hours from `first_hour` to before `end_hour`, in order of its fields."""
        ...

    async def load(self, since: float, until: float) -> tuple[SessionLoad, ...]:
        """Sessions that were open at some time from `since` to before `until`, with their requests of that time.

        Oldest session first.
        """
        ...

    async def losses_in_use(self, since: float) -> frozenset[str]:
        """Keys of losses of all tenants noted since then, or by a session that is active or has an open run."""
        ...

    async def forget_losses(self, keys: Sequence[str]) -> None:
        """The losses under these keys are deleted."""
        ...
