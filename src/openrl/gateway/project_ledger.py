"""The ledger as a key that is bound to a project sees it."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

from openrl.errors import Forbidden, NotFound
from openrl.store.base import SessionRow
from openrl.store.ledger import (
    AuditEntry,
    ProjectSummary,
    SessionQuery,
    SessionSummary,
    StorageSpan,
    TenantLedger,
    TracedRequest,
    UsageReport,
)


class ProjectLedger:
    """`TenantLedger` of one project; `get_session` raises NotFound for sessions of others."""

    def __init__(
        self, ledger: TenantLedger, project_id: str, get_session: Callable[[str, str], Awaitable[SessionRow]]
    ) -> None:
        self._ledger = ledger
        self._project_id = project_id
        self._get_session = get_session

    async def search_sessions(self, query: SessionQuery) -> tuple[SessionSummary, ...]:
        for project_id in query.project_ids or ():
            if project_id != self._project_id:
                raise NotFound.of("project", project_id)
        return await self._ledger.search_sessions(replace(query, project_ids=(self._project_id,)))

    async def assign_project(self, tenant_id: str, session_id: str, project_id: str, now: float) -> None:
        await self._get_session(tenant_id, session_id)
        if project_id != self._project_id:
            message = f"this API key is bound to project {self._project_id!r}: it moves nothing to {project_id!r}"
            raise Forbidden(message, value=project_id, bound=self._project_id)
        await self._ledger.assign_project(tenant_id, session_id, project_id, now)

    async def list_projects(self, tenant_id: str) -> tuple[ProjectSummary, ...]:
        found = await self._ledger.list_projects(tenant_id)
        return tuple(project for project in found if project.project_id == self._project_id)

    async def usage(self, tenant_id: str, first_hour: int, end_hour: int) -> UsageReport:
        report = await self._ledger.usage(tenant_id, first_hour, end_hour)
        rows = tuple(row for row in report.rows if row.project_id == self._project_id)
        named = {row.session_id for row in rows}
        return UsageReport(rows, {name: data for name, data in report.sessions.items() if name in named})

    async def storage(self, tenant_id: str, since: float, until: float) -> tuple[StorageSpan, ...]:
        spans = await self._ledger.storage(tenant_id, since, until)
        return tuple(span for span in spans if span.project_id == self._project_id)

    async def audit_log(self, *_: object, **__: object) -> tuple[AuditEntry, ...]:
        raise Forbidden("the audit log is the whole tenant's", bound="a key that is bound to no project")

    async def note_loss_use(self, key: str, tenant_id: str, session_id: str, now: float) -> None:
        await self._get_session(tenant_id, session_id)
        await self._ledger.note_loss_use(key, tenant_id, session_id, now)

    async def trace_version(self, tenant_id: str, session_id: str) -> tuple[int, int]:
        await self._get_session(tenant_id, session_id)
        return await self._ledger.trace_version(tenant_id, session_id)

    async def trace(self, tenant_id: str, session_id: str, limit: int) -> tuple[TracedRequest, ...]:
        await self._get_session(tenant_id, session_id)
        return await self._ledger.trace(tenant_id, session_id, limit)
