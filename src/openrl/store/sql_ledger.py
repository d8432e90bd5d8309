"""The ledger over SQL."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from openrl.store import audit, loads, loss_uses, projects, session_search, traces, usage
from openrl.store.ledger import (
    AuditCategory,
    AuditEntry,
    ProjectSummary,
    SessionLoad,
    SessionQuery,
    SessionSummary,
    Spending,
    StorageSpan,
    TracedRequest,
    UsageReport,
)

T = TypeVar("T")


class RunQuery(Protocol):
    """Runs a function of a connection and these arguments in the right thread."""

    def __call__(self, query: Callable[..., T], *arguments: Any) -> Awaitable[T]: ...


class SqlLedger:
    """`Ledger` over the connections of a `SqlStore`."""

    def __init__(self, read: RunQuery, change: RunQuery, clock: Callable[[], float]) -> None:
        self._read = read
        self._change = change
        self._clock = clock

    async def search_sessions(self, query: SessionQuery) -> tuple[SessionSummary, ...]:
        return await self._read(session_search.search, query, self._clock())

    async def assign_project(self, tenant_id: str, session_id: str, project_id: str, now: float) -> None:
        await self._change(projects.assign_project, tenant_id, session_id, project_id, now)

    async def list_projects(self, tenant_id: str) -> tuple[ProjectSummary, ...]:
        return await self._read(projects.list_projects, tenant_id, self._clock())

    async def usage(self, tenant_id: str, first_hour: int, end_hour: int) -> UsageReport:
        return await self._read(usage.report, tenant_id, first_hour, end_hour)

    async def spending(self, tenant_id: str | None, first_hour: int, end_hour: int) -> tuple[Spending, ...]:
        return await self._read(usage.spending, tenant_id, first_hour, end_hour)

    async def load(self, since: float, until: float) -> tuple[SessionLoad, ...]:
        return await self._read(loads.load, since, until)

    async def storage(self, tenant_id: str, since: float, until: float) -> tuple[StorageSpan, ...]:
        return await self._read(usage.storage, tenant_id, since, until, self._clock())

    async def audit_log(
        self, tenant_id: str, category: AuditCategory | None, since: float, until: float
    ) -> tuple[AuditEntry, ...]:
        return await self._read(audit.list_entries, tenant_id, category, since, until)

    async def note_loss_use(self, key: str, tenant_id: str, session_id: str, now: float) -> None:
        await self._change(loss_uses.note, key, tenant_id, session_id, now)

    async def losses_in_use(self, since: float) -> frozenset[str]:
        return await self._read(loss_uses.in_use, since)

    async def forget_losses(self, keys: Sequence[str]) -> None:
        await self._change(loss_uses.forget, keys)

    async def trace_version(self, tenant_id: str, session_id: str) -> tuple[int, int]:
        return await self._read(traces.trace_version, tenant_id, session_id)

    async def trace(self, tenant_id: str, session_id: str, limit: int) -> tuple[TracedRequest, ...]:
        return await self._read(traces.trace, tenant_id, session_id, limit)
