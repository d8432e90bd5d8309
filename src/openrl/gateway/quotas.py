"""Refuses what is over a quota before anything is stored: too many requests, stored bytes, live runs."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from openrl.errors import QuotaExceeded
from openrl.gateway.row_cache import RowCache
from openrl.store.base import TenantStore
from openrl.store.quotas import NO_LIMITS, WHOLE_TENANT, Bound, Limits, check_bound

LIMITS_AGE_S = 2.0
COUNT_AGE_S = 0.5
PROJECT_AGE_S = 10.0
RETRY_AFTER_S = 2.0
LONGEST_REFUSAL_S = 240.0
"""Clients give up after 300 s, and a number that a run's client has given up would hold up the run for ever."""
_REMEMBERED = 10_000


@dataclass(slots=True)
class QueueCount:
    """A tenant's unfinished requests, as of some moment, and those that were let in since."""

    read_at: float = float("-inf")
    by_project: dict[str, int] = field(default_factory=dict[str, int])
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)


class QuotaBook:
    """Limits and counts of a gateway's tenants, a little old at most."""

    def __init__(self, store: TenantStore, defaults: Limits, clock: Callable[[], float]) -> None:
        self._store = store
        self._defaults = defaults
        self._clock = clock
        self._limits: RowCache[Mapping[str, Limits]] = RowCache(_REMEMBERED, LIMITS_AGE_S, clock)
        self._projects: RowCache[str] = RowCache(_REMEMBERED, PROJECT_AGE_S, clock)
        self._counts: dict[str, QueueCount] = {}
        self._refused: OrderedDict[tuple[str, str], float] = OrderedDict()  # since when, by tenant and retry identity

    async def bound(self, tenant_id: str, project_id: str, name: str) -> Bound:
        """The limits of this name."""
        limits = await self._limits_of(tenant_id)
        return Bound(limits[WHOLE_TENANT].bound(name), limits.get(project_id, NO_LIMITS).bound(name))

    async def has(self, tenant_id: str, name: str) -> bool:
        """Whether there is any limit of this name, of the tenant or of one of its projects."""
        return any(not Bound(each.bound(name)).is_open() for each in (await self._limits_of(tenant_id)).values())

    async def tenant_limit(self, tenant_id: str, name: str) -> float:
        """The tenant's own limit of this name."""
        return (await self._limits_of(tenant_id))[WHOLE_TENANT].bound(name)

    async def project_of(self, tenant_id: str, session_id: str) -> str:
        """Where the tenant's session is; raises NotFound."""
        return await self._projects.get(tenant_id, session_id, self._read_project)

    async def admit_save(self, tenant_id: str, session_id: str) -> None:
        """Raises QuotaReached when nothing more may be stored in the session's project, however little."""
        if await self.has(tenant_id, "stored_bytes"):
            await self.admit_stored(tenant_id, await self.project_of(tenant_id, session_id), 1)

    async def admit_stored(self, tenant_id: str, project_id: str, added: int) -> None:
        """Raises QuotaReached when so many bytes do not fit."""
        bound = await self.bound(tenant_id, project_id, "stored_bytes")
        if not bound.is_open():
            held = {each.project_id: each.stored_bytes for each in await self._store.quotas.holdings(tenant_id)}
            check_bound("stored_bytes", held, project_id, added, bound)

    async def admit_queued(self, tenant_id: str, session_id: str, key: str, run_id: str = "", seq_id: int = 0) -> None:
        """Count one more request; raises QuotaExceeded while too many have not finished.

        Whatever others of its run may be waiting for is let in, and what has been refused for long; `key` is the
        request's retry identity.
        """
        if not await self.has(tenant_id, "queued_requests"):
            return
        project_id = await self.project_of(tenant_id, session_id)
        bound = await self.bound(tenant_id, project_id, "queued_requests")
        held = await self._queued(tenant_id)
        in_all, in_project = sum(held.values()), held.get(project_id, 0)
        if in_all >= bound.tenant or in_project >= bound.project:
            is_missed = run_id != "" and await self._store.quotas.has_later(tenant_id, run_id, seq_id)
            if not is_missed and not (run_id and self._is_overdue(tenant_id, key)):
                raise _too_many(in_all, in_project, project_id, bound)
        self._refused.pop((tenant_id, key), None)
        held[project_id] = held.get(project_id, 0) + 1

    async def _limits_of(self, tenant_id: str) -> Mapping[str, Limits]:
        return await self._limits.get(tenant_id, "", self._read_limits)

    async def _read_limits(self, tenant_id: str, _: str) -> Mapping[str, Limits]:
        limits = {row.project_id: row.limits for row in await self._store.quotas.quotas_of(tenant_id)}
        return limits | {WHOLE_TENANT: limits.get(WHOLE_TENANT, NO_LIMITS).over(self._defaults)}

    async def _read_project(self, tenant_id: str, session_id: str) -> str:
        return (await self._store.get_session(tenant_id, session_id)).project_id

    async def _queued(self, tenant_id: str) -> dict[str, int]:
        count = self._counts.setdefault(tenant_id, QueueCount())
        async with count.reading:
            if self._clock() - count.read_at > COUNT_AGE_S:
                count.by_project = dict(await self._store.quotas.num_queued(tenant_id))
                count.read_at = self._clock()
        return count.by_project

    def _is_overdue(self, tenant_id: str, key: str) -> bool:
        since = self._refused.setdefault((tenant_id, key), self._clock())
        if len(self._refused) > _REMEMBERED:
            self._refused.popitem(last=False)
        return self._clock() - since > LONGEST_REFUSAL_S


def _too_many(in_all: int, in_project: int, project_id: str, bound: Bound) -> QuotaExceeded:
    of_tenant = in_all >= bound.tenant
    used, limit = (in_all, bound.tenant) if of_tenant else (in_project, bound.project)
    owner = "this tenant" if of_tenant else f"project {project_id!r}"
    message = f"quota queued_requests of {owner}: {used} of {limit:.0f} have not finished; try again later"
    error = QuotaExceeded(message, value=used + 1, bound=f"at most {limit:.0f}")
    error.retry_after_s = RETRY_AFTER_S
    return error
