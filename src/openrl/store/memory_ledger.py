"""The ledger in plain dicts: the slow, obvious twin of `SqlLedger`, and the rows it looks at."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, replace
from typing import Literal

from openrl.errors import NotFound
from openrl.store.base import (
    CheckpointRow,
    FinishedRequest,
    RequestRow,
    RunRow,
    SamplerRow,
    SessionRow,
)
from openrl.store.checkpoints import change_entries, checkpoint_entry, end_action
from openrl.store.ledger import (
    DEFAULT_PROJECT,
    AuditCategory,
    AuditEntry,
    ProjectSummary,
    RequestLoad,
    SessionLoad,
    SessionQuery,
    SessionSummary,
    Spending,
    StorageSpan,
    TracedRequest,
    UsageReport,
    UsageRow,
)
from openrl.store.loads import in_order
from openrl.store.memory_checkpoints import MemoryCheckpoints
from openrl.store.projects import move_entry
from openrl.store.session_search import matches, summary
from openrl.store.usage import UsageKey, Used, add_up


class MemoryLedger:
    """Base of `MemoryStore`, which fills the rows and calls the `_note_*` methods."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._sessions: dict[str, SessionRow] = {}
        self._runs: dict[str, RunRow] = {}
        self._samplers: dict[str, SamplerRow] = {}
        self._requests: dict[str, RequestRow] = {}  # in order of position
        self._checkpoints = MemoryCheckpoints(clock)
        self._projects: dict[tuple[str, str], float] = {}
        self._ends: dict[str, FinishedRequest] = {}
        self._usage: dict[UsageKey, Used] = {}
        self._past: list[tuple[CheckpointRow, float]] = []
        self._loss_uses: dict[tuple[str, str], tuple[str, float]] = {}  # key, session -> tenant, time
        self._audit: list[tuple[str, AuditEntry]] = []

    async def search_sessions(self, query: SessionQuery) -> tuple[SessionSummary, ...]:
        for project_id in query.project_ids or ():
            if (query.tenant_id, project_id) not in self._projects:
                raise NotFound.of("project", project_id)
        owned = [row for row in self._sessions.values() if row.tenant_id == query.tenant_id]
        owned.sort(key=_age, reverse=True)
        after = query.after
        if after is not None:
            known = self._sessions.get(after[1])
            after = _age(known) if known is not None and known.tenant_id == query.tenant_id else after
        found = [row for row in owned if (after is None or _age(row) < after) and matches(query, row)]
        return tuple(self._summary(row) for row in found[: query.limit])

    async def assign_project(self, tenant_id: str, session_id: str, project_id: str, now: float) -> None:
        session = self._sessions.get(session_id)
        if session is None or session.tenant_id != tenant_id:
            raise NotFound.of("session", session_id)
        if session.project_id != project_id:
            self._note_project(tenant_id, project_id, now)
            self._sessions[session_id] = replace(session, project_id=project_id)
            self._record(tenant_id, move_entry(session_id, session.project_id, project_id, now))

    async def list_projects(self, tenant_id: str) -> tuple[ProjectSummary, ...]:
        owned = sorted((at, name) for (owner, name), at in self._projects.items() if owner == tenant_id)
        return tuple(self._project(tenant_id, name, at) for at, name in owned)

    async def usage(self, tenant_id: str, first_hour: int, end_hour: int) -> UsageReport:
        sums: dict[UsageKey, Used] = {}
        for key, used in self._used(tenant_id, first_hour, end_hour):
            _add(sums, key._replace(run_id=""), used)
        rows = [
            UsageRow(
                key.hour, key.session_id, key.base_model, key.kind,
                used.amount, self._project_of(key.session_id), used.busy_us,
            )
            for key, used in sums.items()
        ]  # fmt: skip
        rows.sort(key=lambda row: (row.hour, -row.amount, row.session_id, row.base_model, row.kind))
        named = {row.session_id: self._sessions[row.session_id] for row in rows if row.session_id in self._sessions}
        return UsageReport(tuple(rows), {name: session.user_metadata for name, session in named.items()})

    async def spending(self, tenant_id: str | None, first_hour: int, end_hour: int) -> tuple[Spending, ...]:
        sums: dict[UsageKey, Used] = {}
        for key, used in self._used(tenant_id, first_hour, end_hour):
            _add(sums, key._replace(hour=0), used)
        return tuple(sorted((self._spending(key, used) for key, used in sums.items()), key=astuple))

    async def load(self, since: float, until: float) -> tuple[SessionLoad, ...]:
        owned = [row for row in self._sessions.values() if row.created_at < until]
        was_open = [row for row in owned if row.state == "active" or row.last_heartbeat_at >= since]
        return in_order(self._load_of(row, since, until) for row in was_open)

    async def storage(self, tenant_id: str, since: float, until: float) -> tuple[StorageSpan, ...]:
        now = self._clock()
        live = [(row, row.expires_at if _is_over(row, now) else None) for row in self._checkpoints.rows.values()]
        held = [
            (row, end)
            for rows in (live, self._past)
            for row, end in sorted(rows, key=lambda each: each[0].created_at)
            if row.tenant_id == tenant_id and row.created_at < until and (end is None or end > since)
        ]
        return tuple(self._span(row, end) for row, end in held)

    async def audit_log(
        self, tenant_id: str, category: AuditCategory | None, since: float, until: float
    ) -> tuple[AuditEntry, ...]:
        owned = [entry for owner, entry in self._audit if owner == tenant_id and since <= entry.created_at < until]
        wanted = [entry for entry in owned if category in (None, entry.category)]
        return tuple(sorted(wanted, key=lambda entry: entry.created_at))

    async def note_loss_use(self, key: str, tenant_id: str, session_id: str, now: float) -> None:
        self._loss_uses[key, session_id] = (tenant_id, now)

    async def losses_in_use(self, since: float) -> frozenset[str]:
        active = {(row.tenant_id, row.session_id) for row in self._sessions.values() if row.state == "active"}
        live = {(row.spec.tenant_id, row.session_id) for row in self._runs.values() if not row.is_closed}
        return frozenset(
            key
            for (key, session_id), (tenant_id, used_at) in self._loss_uses.items()
            if used_at >= since or (tenant_id, session_id) in active | live
        )

    async def forget_losses(self, keys: Sequence[str]) -> None:
        self._loss_uses = {use: held for use, held in self._loss_uses.items() if use[0] not in keys}

    async def trace_version(self, tenant_id: str, session_id: str) -> tuple[int, int]:
        rows = list(self._of_session(tenant_id, session_id))
        return len(rows), sum(row.finished_at is not None for row in rows)

    async def trace(self, tenant_id: str, session_id: str, limit: int) -> tuple[TracedRequest, ...]:
        rows = sorted(self._of_session(tenant_id, session_id), key=lambda row: (row.created_at, row.seq_id))
        return tuple(self._traced(row) for row in rows[-limit:])

    # -- what the store reports
    def _record(self, tenant_id: str, entry: AuditEntry) -> None:
        self._audit.append((tenant_id, entry))

    def _note_project(self, tenant_id: str, project_id: str, now: float) -> None:
        if (tenant_id, project_id) not in self._projects:
            self._projects[tenant_id, project_id] = now
            self._record(tenant_id, AuditEntry(now, "projects", "project_create", {"project_id": project_id}))

    def _note_ends(self, ended: Sequence[FinishedRequest]) -> None:
        self._ends.update((item.request_id, item) for item in ended)
        for key, used in add_up((self._requests[item.request_id], item) for item in ended).items():
            _add(self._usage, key, used)
        for row in (item.checkpoint for item in ended if item.checkpoint is not None):
            self._record(row.tenant_id, checkpoint_entry(row, "save", row.created_at))

    def _note_removed(self, row: CheckpointRow, now: float) -> None:
        self._past.append((row, now if row.expires_at is None else min(now, row.expires_at)))

    def _put_checkpoint(self, row: CheckpointRow, action: Literal["save", "copy"]) -> None:
        self._checkpoints.put(row)
        self._record(row.tenant_id, checkpoint_entry(row, action, row.created_at))

    def _note_deleted(self, row: CheckpointRow, now: float) -> None:
        self._note_removed(row, now)
        self._record(row.tenant_id, checkpoint_entry(row, end_action(row, now), now))

    def _note_changed(
        self, row: CheckpointRow, is_public: bool | None, expires_at: float | Literal["never"] | None
    ) -> None:
        for entry in change_entries(row, is_public, expires_at, self._clock()):
            self._record(row.tenant_id, entry)

    def _used(self, tenant_id: str | None, first_hour: int, end_hour: int) -> Iterable[tuple[UsageKey, Used]]:
        owned = ((key, used) for key, used in self._usage.items() if tenant_id in (None, key.tenant_id))
        return ((key, used) for key, used in owned if first_hour <= key.hour < end_hour)

    def _spending(self, key: UsageKey, used: Used) -> Spending:
        session = self._sessions.get(key.session_id)
        return Spending(
            key.tenant_id, self._project_of(key.session_id), "" if session is None else session.user_id,
            key.session_id, key.run_id, key.base_model, key.kind, used.amount, used.busy_us,
        )  # fmt: skip

    def _load_of(self, session: SessionRow, since: float, until: float) -> SessionLoad:
        rows = [row for row in self._requests.values() if row.session_id == session.session_id]
        asked = tuple(self._request_load(row) for row in rows if since <= row.created_at < until)
        ended_at = None if session.state == "active" else session.last_heartbeat_at
        return SessionLoad(session.session_id, session.tenant_id, session.created_at, ended_at, asked)

    def _request_load(self, row: RequestRow) -> RequestLoad:
        end = self._ends.get(row.request_id) or FinishedRequest(row.request_id, "done", 0.0)
        return RequestLoad(
            row.kind, row.base_model, row.run_id, row.created_at, row.finished_at,
            row.num_tokens, end.num_tokens, end.busy_s,
        )  # fmt: skip

    def _kept(self, run_ids: set[str]) -> list[CheckpointRow]:
        now = self._clock()
        return [row for row in self._checkpoints.rows.values() if row.run_id in run_ids and not _is_over(row, now)]

    def _summary(self, session: SessionRow) -> SessionSummary:
        run_ids = {run.spec.run_id for run in self._runs.values() if run.session_id == session.session_id}
        kept = self._kept(run_ids)
        return summary(session, len(kept), sum(row.size_bytes for row in kept))

    def _project(self, tenant_id: str, project_id: str, created_at: float) -> ProjectSummary:
        owned = [row for row in self._sessions.values() if row.tenant_id == tenant_id]
        session_ids = {row.session_id for row in owned if row.project_id == project_id}
        run_ids = {run.spec.run_id for run in self._runs.values() if run.session_id in session_ids}
        kept = self._kept(run_ids)
        size = sum(row.size_bytes for row in kept)
        return ProjectSummary(project_id, created_at, len(session_ids), len(run_ids), len(kept), size)

    def _project_of(self, session_id: str) -> str:
        session = self._sessions.get(session_id)
        return DEFAULT_PROJECT if session is None else session.project_id

    def _project_of_run(self, run_id: str) -> str | None:
        run = self._runs.get(run_id)
        return None if run is None else self._project_of(run.session_id)

    def _span(self, row: CheckpointRow, until: float | None) -> StorageSpan:
        run = self._runs.get(row.run_id)
        if run is None:
            return StorageSpan(DEFAULT_PROJECT, "", row.size_bytes, row.created_at, until)
        project_id = self._project_of(run.session_id)
        return StorageSpan(project_id, run.spec.base_model, row.size_bytes, row.created_at, until)

    def _of_session(self, tenant_id: str, session_id: str) -> Iterable[RequestRow]:
        run_ids = {row.spec.run_id for row in self._runs.values() if row.session_id == session_id}
        sampler_ids = {row.sampler_id for row in self._samplers.values() if row.session_id == session_id}
        owned = (row for row in self._requests.values() if row.tenant_id == tenant_id)
        return (row for row in owned if row.run_id in run_ids or row.sampler_id in sampler_ids)

    def _traced(self, row: RequestRow) -> TracedRequest:
        end = self._ends.get(row.request_id) or FinishedRequest(row.request_id, "done", 0.0)
        return TracedRequest(
            row.request_id, row.kind, row.seq_id, row.run_id, row.sampler_id, row.state, row.created_at,
            row.finished_at, end.wall_s, end.busy_s, end.num_tokens, end.num_sampled_tokens, end.num_cached_tokens,
        )  # fmt: skip


def _add(sums: dict[UsageKey, Used], key: UsageKey, used: Used) -> None:
    sums[key] = Used(used.amount + (old := sums.get(key, Used())).amount, used.busy_us + old.busy_us)


def _age(session: SessionRow) -> tuple[float, str]:
    return session.created_at, session.session_id


def _is_over(row: CheckpointRow, now: float) -> bool:
    return row.expires_at is not None and row.expires_at <= now
