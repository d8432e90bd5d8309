"""The contract of quotas: what tenants and their projects may use, and what they have in use.

The rules of `Store` hold. A quota of the tenant and one of the project both apply.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from openrl.config import QuotasConfig
from openrl.errors import QuotaReached
from openrl.store.identities import Actor
from openrl.store.ledger import AuditEntry

WHOLE_TENANT = ""
"""In place of a project's id: the quota is the tenant's."""
UNLIMITED = math.inf
"""No limit, whatever the default is."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a tenant or project may have; None: the default."""

    gpu_seconds_month: float | None = None  # device seconds in a calendar month of UTC
    gpu_seconds_day: float | None = None
    stored_bytes: float | None = None  # checkpoints, snapshots of open runs, unnamed saves of active sessions
    live_runs: float | None = None
    running_requests: float | None = None  # that compute at once; the others wait in order
    queued_requests: float | None = None  # accepted and not finished
    tokens_per_s: float | None = None  # of training and sampling
    burst_tokens: float | None = None  # that may come at once after a rest
    requests_per_s: float | None = None  # over HTTP

    def over(self, defaults: "Limits") -> "Limits":
        """These, and the defaults where there is none."""
        missing = {name: getattr(defaults, name) for name in LIMIT_NAMES if getattr(self, name) is None}
        return replace(self, **missing)

    def bound(self, name: str) -> float:
        """The limit of this name, infinite if there is none."""
        value = getattr(self, name)
        return UNLIMITED if value is None else value


def default_limits(config: QuotasConfig) -> Limits:
    """What tenants have that nothing was set for."""
    return Limits(**config.model_dump())


LIMIT_NAMES = tuple(field.name for field in fields(Limits))
NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class QuotaRow:
    """What was set for a tenant, or for one of its projects."""

    tenant_id: str
    project_id: str  # WHOLE_TENANT, or a project
    limits: Limits
    changed_at: float
    weight: float | None = None  # of the tenant's share of a device; None: as configured


@dataclass(frozen=True, slots=True)
class Bound:
    """The most that a tenant, and the project it is for, may have of something."""

    tenant: float = UNLIMITED
    project: float = UNLIMITED

    def is_open(self) -> bool:
        """Whether there is nothing to check."""
        return self.tenant == self.project == UNLIMITED


UNBOUNDED = Bound()


@dataclass(frozen=True, slots=True)
class Holding:
    """What is in use in one project."""

    project_id: str
    stored_bytes: int = 0
    live_runs: int = 0


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """Device time of one project."""

    tenant_id: str
    project_id: str
    busy_us: int


class TenantQuotas(Protocol):
    """What the gateway may ask: every look-up carries the tenant. See the module docstring for the rest."""

    async def quotas_of(self, tenant_id: str) -> tuple[QuotaRow, ...]:
        """The tenant's own, then those of its projects."""
        ...

    async def holdings(self, tenant_id: str) -> tuple[Holding, ...]:
        """What is in use in each project that holds anything."""
        ...

    async def num_queued(self, tenant_id: str) -> Mapping[str, int]:
        """Requests that have not finished, by project."""
        ...

    async def has_later(self, tenant_id: str, run_id: str, seq_id: int) -> bool:
        """Whether a request of the run with a larger number has not finished: it may be waiting for this one."""
        ...


class Quotas(TenantQuotas, Protocol):
    """What schedulers and operators do besides, over all tenants; the gateway does not."""

    async def list_quotas(self) -> tuple[QuotaRow, ...]:
        """What was set for all tenants."""
        ...

    async def put_quota(self, row: QuotaRow, by: Actor) -> None:
        """Set in place of what there was for the tenant and project."""
        ...

    async def clear_quota(self, tenant_id: str, project_id: str, now: float, by: Actor) -> None:
        """Back to the defaults; raises NotFound when nothing was set."""
        ...

    async def device_use(self, first_hour: int) -> tuple[DeviceUse, ...]:
        """Device time from this hour on, of all tenants."""
        ...


def set_entry(row: QuotaRow, by: Actor) -> AuditEntry:
    """What the audit log says of a quota that was set."""
    values = {name: value for name in LIMIT_NAMES if (value := getattr(row.limits, name)) is not None}
    details: dict[str, Any] = {name: "unlimited" if value == UNLIMITED else value for name, value in values.items()}
    details |= {} if row.weight is None else {"weight": row.weight}
    return AuditEntry(row.changed_at, "organizations", "quota_set", _about(row.project_id, by) | details)


def clear_entry(project_id: str, now: float, by: Actor) -> AuditEntry:
    """What the audit log says of a quota that was cleared."""
    return AuditEntry(now, "organizations", "quota_clear", _about(project_id, by))


def _about(project_id: str, by: Actor) -> dict[str, Any]:
    return by.details() | ({"project_id": project_id} if project_id else {})


def check_bound(what: str, held: Mapping[str, int], project_id: str, added: int, bound: Bound) -> None:
    """Raises QuotaReached when `added` more in a project are over one of the bounds; `held` is by project."""
    in_all, in_project = sum(held.values()), held.get(project_id, 0)
    if in_all + added > bound.tenant:
        raise QuotaReached.of(what, "this tenant", in_all, bound.tenant, added)
    if in_project + added > bound.project:
        raise QuotaReached.of(what, f"project {project_id!r}", in_project, bound.project, added)
