"""The store as a key that is bound to a project sees it: what belongs to sessions of other projects does not exist.

Whose a thing is, its session says: every look-up first asks for the session, and an answer may be ten seconds old.
Checkpoints that anybody may read can be read here too.
"""

from collections.abc import Sequence
from typing import Literal

from openrl.errors import Forbidden, NotFound
from openrl.gateway.project_ledger import ProjectLedger
from openrl.gateway.row_cache import RowCache
from openrl.protocol.paths import CheckpointPath
from openrl.protocol.runs import CheckpointKind
from openrl.store.base import (
    CheckpointRow,
    Page,
    RequestRow,
    RunRow,
    SamplerRow,
    SessionRow,
    SessionState,
    TenantStore,
)
from openrl.store.cluster import Cluster
from openrl.store.identities import Actor, ShareRow, TenantIdentities
from openrl.store.quotas import UNBOUNDED, Bound, TenantQuotas


class ProjectStore:
    """`TenantStore` of one project."""

    def __init__(self, store: TenantStore, project_id: str, sessions: RowCache[SessionRow]) -> None:
        self._store = store
        self._project_id = project_id
        self._sessions = sessions
        self._ledger = ProjectLedger(store.ledger, project_id, self.get_session)

    @property
    def ledger(self) -> ProjectLedger:
        return self._ledger

    @property
    def identities(self) -> TenantIdentities:
        """Whole: what changes it needs an admin, which no bound key is."""
        return self._store.identities

    @property
    def cluster(self) -> Cluster:
        return self._store.cluster

    @property
    def quotas(self) -> TenantQuotas:
        """Whole: a project is bound by what its tenant has."""
        return self._store.quotas

    # -- sessions
    async def create_session(self, session: SessionRow) -> SessionRow:
        self._check_target(session.project_id)
        stored = await self._store.create_session(session)
        self._check_target(stored.project_id)  # a repetition gives the first one
        return stored

    async def get_session(self, tenant_id: str, session_id: str) -> SessionRow:
        await self._check(tenant_id, session_id, "session", session_id)
        return await self._store.get_session(tenant_id, session_id)

    async def list_sessions(
        self, tenant_id: str, limit: int, offset: int, project_id: str | None = None
    ) -> Page[SessionRow]:
        if project_id not in (None, self._project_id):
            return Page((), 0)
        return await self._store.list_sessions(tenant_id, limit, offset, self._project_id)

    async def heartbeat(self, tenant_id: str, session_id: str, now: float) -> None:
        await self._check(tenant_id, session_id, "session", session_id)
        await self._store.heartbeat(tenant_id, session_id, now)

    async def end_session(self, tenant_id: str, session_id: str, state: SessionState, reason: str) -> None:
        await self._check(tenant_id, session_id, "session", session_id)
        await self._store.end_session(tenant_id, session_id, state, reason)

    # -- runs
    async def create_run(
        self, run: RunRow, request: RequestRow, payload: bytes, max_live: Bound = UNBOUNDED
    ) -> tuple[RunRow, RequestRow]:
        await self._check(run.spec.tenant_id, run.session_id, "session", run.session_id)
        return await self._store.create_run(run, request, payload, max_live)

    async def get_run(self, tenant_id: str, run_id: str) -> RunRow:
        run = await self._store.get_run(tenant_id, run_id)
        await self._check(tenant_id, run.session_id, "training run", run_id)
        return run

    async def list_runs(self, tenant_id: str, limit: int, offset: int, project_id: str | None = None) -> Page[RunRow]:
        if project_id not in (None, self._project_id):
            return Page((), 0)
        return await self._store.list_runs(tenant_id, limit, offset, self._project_id)

    async def free_seq_ids(self, tenant_id: str, run_id: str) -> tuple[int, frozenset[int]]:
        await self.get_run(tenant_id, run_id)
        return await self._store.free_seq_ids(tenant_id, run_id)

    async def runs_of_session(self, tenant_id: str, session_id: str) -> tuple[RunRow, ...]:
        await self._check(tenant_id, session_id, "session", session_id)
        return await self._store.runs_of_session(tenant_id, session_id)

    # -- samplers
    async def create_sampler(self, sampler: SamplerRow) -> SamplerRow:
        await self._check(sampler.tenant_id, sampler.session_id, "session", sampler.session_id)
        return await self._store.create_sampler(sampler)

    async def get_sampler(self, tenant_id: str, sampler_id: str) -> SamplerRow:
        sampler = await self._store.get_sampler(tenant_id, sampler_id)
        await self._check(tenant_id, sampler.session_id, "sampling session", sampler_id)
        return sampler

    async def samplers_of_session(self, tenant_id: str, session_id: str) -> tuple[SamplerRow, ...]:
        await self._check(tenant_id, session_id, "session", session_id)
        return await self._store.samplers_of_session(tenant_id, session_id)

    async def join_sampler(self, tenant_id: str, sampler_id: str) -> int:
        await self.get_sampler(tenant_id, sampler_id)
        return await self._store.join_sampler(tenant_id, sampler_id)

    # -- requests
    async def enqueue(self, request: RequestRow, payload: bytes) -> RequestRow:
        await self._check(request.tenant_id, request.session_id, "session", request.session_id)
        return await self._store.enqueue(request, payload)

    async def get_request(self, tenant_id: str, request_id: str) -> RequestRow:
        request = await self._store.get_request(tenant_id, request_id)
        await self._check(tenant_id, request.session_id, "request", request_id)
        return request

    async def cancel_request(self, tenant_id: str, request_id: str, now: float) -> bool:
        await self.get_request(tenant_id, request_id)
        return await self._store.cancel_request(tenant_id, request_id, now)

    async def wait_finished(self, tenant_id: str, request_id: str, timeout_s: float) -> RequestRow | None:
        await self.get_request(tenant_id, request_id)
        return await self._store.wait_finished(tenant_id, request_id, timeout_s)

    async def ended_samples(
        self, tenant_id: str, sampler_id: str, seq_ids: range, after: int, timeout_s: float
    ) -> tuple[RequestRow, ...]:
        await self.get_sampler(tenant_id, sampler_id)
        return await self._store.ended_samples(tenant_id, sampler_id, seq_ids, after, timeout_s)

    async def release_results(self, tenant_id: str, sampler_id: str, request_ids: Sequence[str]) -> None:
        await self.get_sampler(tenant_id, sampler_id)
        await self._store.release_results(tenant_id, sampler_id, request_ids)

    # -- checkpoints
    async def get_checkpoint(self, tenant_id: str, run_id: str, kind: CheckpointKind, name: str) -> CheckpointRow:
        row = await self._store.get_checkpoint(tenant_id, run_id, kind, name)
        if row.tenant_id == tenant_id and not row.is_public:
            await self._check_checkpoint(tenant_id, run_id, kind, name)
        return row

    async def list_checkpoints(
        self, tenant_id: str, limit: int, offset: int, run_id: str | None = None, project_id: str | None = None
    ) -> Page[CheckpointRow]:
        if project_id not in (None, self._project_id):
            return Page((), 0)
        return await self._store.list_checkpoints(tenant_id, limit, offset, run_id, self._project_id)

    async def delete_checkpoint(self, tenant_id: str, run_id: str, kind: CheckpointKind, name: str) -> CheckpointRow:
        await self._check_checkpoint(tenant_id, run_id, kind, name)
        return await self._store.delete_checkpoint(tenant_id, run_id, kind, name)

    async def copy_checkpoint(
        self, copy: CheckpointRow, run: RunRow, session: SessionRow | None, max_stored: Bound = UNBOUNDED
    ) -> CheckpointRow:
        if session is None:
            await self._check(copy.tenant_id, run.session_id, "session", run.session_id)
        else:
            self._check_target(session.project_id)
        stored = await self._store.copy_checkpoint(copy, run, session, max_stored)
        await self._check_checkpoint(stored.tenant_id, stored.run_id, stored.kind, stored.name)
        return stored

    async def update_checkpoint(
        self,
        tenant_id: str,
        run_id: str,
        kind: CheckpointKind,
        name: str,
        *,
        is_public: bool | None = None,
        expires_at: float | Literal["never"] | None = None,
    ) -> CheckpointRow:
        await self._check_checkpoint(tenant_id, run_id, kind, name)
        return await self._store.update_checkpoint(
            tenant_id, run_id, kind, name, is_public=is_public, expires_at=expires_at
        )

    # -- shares
    async def create_share(self, share: ShareRow, by: Actor) -> ShareRow:
        await self._check_checkpoint(share.tenant_id, share.run_id, share.kind, share.name)
        return await self._store.create_share(share, by)

    async def list_shares(self, tenant_id: str, project_id: str | None = None) -> tuple[ShareRow, ...]:
        if project_id not in (None, self._project_id):
            return ()
        return await self._store.list_shares(tenant_id, self._project_id)

    async def revoke_share(self, tenant_id: str, share_id: str, now: float, by: Actor) -> ShareRow:
        if share_id not in {share.share_id for share in await self.list_shares(tenant_id)}:
            raise NotFound.of("share", share_id)
        return await self._store.revoke_share(tenant_id, share_id, now, by)

    async def shared_checkpoint(self, token_hash: str, run_id: str, kind: CheckpointKind, name: str) -> CheckpointRow:
        return await self._store.shared_checkpoint(token_hash, run_id, kind, name)

    async def _check(self, tenant_id: str, session_id: str, what: str, name: str) -> None:
        """Raises NotFound naming what was asked for, unless its session is the project's."""
        try:
            session = await self._sessions.get(tenant_id, session_id, self._store.get_session)
        except NotFound:
            raise NotFound.of(what, name) from None
        if session.project_id != self._project_id:
            raise NotFound.of(what, name)

    async def _check_checkpoint(self, tenant_id: str, run_id: str, kind: CheckpointKind, name: str) -> None:
        path = str(CheckpointPath(run_id, kind, name))
        try:
            run = await self._store.get_run(tenant_id, run_id)
        except NotFound:
            raise NotFound.of("checkpoint", path) from None
        await self._check(tenant_id, run.session_id, "checkpoint", path)

    def _check_target(self, project_id: str) -> None:
        """Raises Forbidden for a session that would be another project's."""
        if project_id != self._project_id:
            message = f"this API key is bound to project {self._project_id!r}, not {project_id!r}"
            raise Forbidden(message, value=project_id, bound=self._project_id)
