"""The store in plain dicts: the slow, obvious twin of `SqlStore`, for tests."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Literal, TypeVar

from openrl.errors import InvalidRequest, NotFound, QuotaReached, SessionEnded, Unavailable
from openrl.protocol.runs import CheckpointKind, changes_run
from openrl.store.base import (
    MAX_ENDED,
    Blobs,
    CheckpointRow,
    FinishedRequest,
    Page,
    RequestRow,
    RunRow,
    SamplerRow,
    SessionRow,
    SessionState,
)
from openrl.store.copies import check_repetition, check_session
from openrl.store.identities import Identities
from openrl.store.ledger import Ledger
from openrl.store.memory_blobs import MemoryBlobs
from openrl.store.memory_cluster import MemoryCluster, fenced_writes
from openrl.store.memory_rows import found_row, insert_row, owned_row, retry_of_run, retry_of_sampler, retry_of_session
from openrl.store.memory_shares import MemoryShares
from openrl.store.quotas import UNBOUNDED, Bound

T = TypeVar("T")


@fenced_writes
class MemoryStore(MemoryShares):
    """`Store` in memory: the same answers as `SqlStore`, nothing survives a restart."""

    def __init__(self, blobs: Blobs | None = None, clock: Callable[[], float] = time.time) -> None:
        self._blobs: Blobs = MemoryBlobs() if blobs is None else blobs
        super().__init__(clock)
        self._listeners: list[asyncio.Queue[Sequence[RequestRow] | None]] = []
        self._changed = asyncio.Condition()
        self._num_joined: dict[str, int] = {}  # by sampler
        self._num_ended_samples = 0
        self._released: set[str] = set()
        self._is_closed = False
        self._cluster = MemoryCluster(self._all_demand, self._work)

    @property
    def ledger(self) -> Ledger:
        return self

    @property
    def identities(self) -> Identities:
        return self

    @property
    def cluster(self) -> MemoryCluster:
        return self._cluster

    async def close(self) -> None:
        self._is_closed = True
        self._cluster.close()
        for listener in self._listeners:
            listener.put_nowait(None)
        await self._notify()

    # -- sessions
    async def create_session(self, session: SessionRow) -> SessionRow:
        for row in self._sessions.values():
            if session.idempotency_key is not None and retry_of_session(row) == retry_of_session(session):
                return row
        stored = insert_row(self._sessions, session.session_id, session)
        self._note_project(session.tenant_id, session.project_id, session.created_at)
        return stored

    async def get_session(self, tenant_id: str, session_id: str) -> SessionRow:
        return owned_row(self._sessions.get(session_id), tenant_id, "session", session_id)

    async def list_sessions(
        self, tenant_id: str, limit: int, offset: int, project_id: str | None = None
    ) -> Page[SessionRow]:
        owned = [row for row in self._sessions.values() if row.tenant_id == tenant_id]
        owned = [row for row in owned if project_id in (None, row.project_id)]
        owned.sort(key=lambda row: (row.created_at, row.session_id), reverse=True)
        return Page(tuple(owned[offset : offset + limit]), len(owned))

    async def heartbeat(self, tenant_id: str, session_id: str, now: float) -> None:
        session = await self.get_session(tenant_id, session_id)
        if session.state != "active":
            raise SessionEnded.of(session_id, session.state, session.end_reason)
        self._sessions[session_id] = replace(session, last_heartbeat_at=now)

    async def end_session(self, tenant_id: str, session_id: str, state: SessionState, reason: str) -> None:
        session = await self.get_session(tenant_id, session_id)
        if session.state == "active":
            self._sessions[session_id] = replace(session, state=state, end_reason=reason)

    async def sessions_silent_since(self, before: float) -> tuple[SessionRow, ...]:
        active = [row for row in self._sessions.values() if row.state == "active" and row.last_heartbeat_at < before]
        return tuple(sorted(active, key=lambda row: (row.last_heartbeat_at, row.session_id)))

    # -- runs
    async def create_run(
        self, run: RunRow, request: RequestRow, payload: bytes, max_live: Bound = UNBOUNDED
    ) -> tuple[RunRow, RequestRow]:
        for row in self._runs.values():
            if retry_of_run(row) == retry_of_run(run):
                return row, next(r for r in self._requests.values() if r.run_id == row.spec.run_id)
        if run.spec.run_id in self._runs:
            raise InvalidRequest(f"an id is taken: {run.spec.run_id!r}")
        self._check_new(request)
        self._check_live_runs(run, max_live)
        self._runs[run.spec.run_id] = run
        stored = await self._insert_request(request, payload)
        return self._runs[run.spec.run_id], stored

    async def get_run(self, tenant_id: str, run_id: str) -> RunRow:
        run = self._runs.get(run_id)
        if run is None or run.spec.tenant_id != tenant_id:
            raise NotFound.of("training run", run_id)
        return run

    async def list_runs(self, tenant_id: str, limit: int, offset: int, project_id: str | None = None) -> Page[RunRow]:
        owned = [row for row in self._runs.values() if row.spec.tenant_id == tenant_id]
        owned = [row for row in owned if project_id in (None, self._project_of(row.session_id))]
        owned.sort(key=lambda row: (row.created_at, row.spec.run_id), reverse=True)
        return Page(tuple(owned[offset : offset + limit]), len(owned))

    async def free_seq_ids(self, tenant_id: str, run_id: str) -> tuple[int, frozenset[int]]:
        await self.get_run(tenant_id, run_id)
        return (await self.run_progress(run_id))[1:]

    async def runs_of_session(self, tenant_id: str, session_id: str) -> tuple[RunRow, ...]:
        of_session = [r for r in self._runs.values() if (r.spec.tenant_id, r.session_id) == (tenant_id, session_id)]
        return tuple(sorted(of_session, key=lambda row: row.model_seq_id))

    async def live_runs(self) -> tuple[RunRow, ...]:
        live = [row for row in self._runs.values() if not row.is_closed]
        return tuple(sorted(live, key=lambda row: (row.created_at, row.spec.run_id)))

    async def close_run(self, run_id: str, kept: CheckpointRow | None = None) -> None:
        run = found_row(self._runs.get(run_id), "training run", run_id)
        self._runs[run_id] = replace(run, is_closed=True)
        if kept is not None and not run.is_closed:
            self._put_checkpoint(kept, "save")

    async def record_snapshot(self, run_id: str, seq_id: int, key: str, size_bytes: int = 0) -> None:
        run = found_row(self._runs.get(run_id), "training run", run_id)
        if seq_id > run.snapshot_seq_id:
            self._runs[run_id] = replace(run, snapshot_seq_id=seq_id, snapshot_key=key, snapshot_bytes=size_bytes)

    # -- samplers
    async def create_sampler(self, sampler: SamplerRow) -> SamplerRow:
        for row in self._samplers.values():
            if retry_of_sampler(row) == retry_of_sampler(sampler):
                return row
        return insert_row(self._samplers, sampler.sampler_id, sampler)

    async def get_sampler(self, tenant_id: str, sampler_id: str) -> SamplerRow:
        return owned_row(self._samplers.get(sampler_id), tenant_id, "sampling session", sampler_id)

    async def samplers_of_session(self, tenant_id: str, session_id: str) -> tuple[SamplerRow, ...]:
        of_session = [r for r in self._samplers.values() if (r.tenant_id, r.session_id) == (tenant_id, session_id)]
        return tuple(sorted(of_session, key=lambda row: row.sampling_session_seq_id))

    async def join_sampler(self, tenant_id: str, sampler_id: str) -> int:
        await self.get_sampler(tenant_id, sampler_id)
        self._num_joined[sampler_id] = self._num_joined.get(sampler_id, 0) + 1
        return self._num_joined[sampler_id]

    # -- requests
    async def enqueue(self, request: RequestRow, payload: bytes) -> RequestRow:
        for row in self._requests.values():
            if (row.tenant_id, row.dedupe_key) == (request.tenant_id, request.dedupe_key):
                return row
        run = self._runs.get(request.run_id)
        if run is not None and run.spec.tenant_id != request.tenant_id:
            raise NotFound.of("training run", request.run_id)
        if run is not None and run.is_closed:
            raise SessionEnded.of_run(request.run_id)
        self._check_new(request)
        return await self._insert_request(request, payload)

    async def get_request(self, tenant_id: str, request_id: str) -> RequestRow:
        return owned_row(self._requests.get(request_id), tenant_id, "request", request_id)

    async def cancel_request(self, tenant_id: str, request_id: str, now: float) -> bool:
        is_queued = (await self.get_request(tenant_id, request_id)).state == "queued"
        await self.finish([FinishedRequest(request_id, "cancelled", now)])
        return is_queued

    async def wait_finished(self, tenant_id: str, request_id: str, timeout_s: float) -> RequestRow | None:
        def is_over() -> bool:
            return self._is_closed or self._requests[request_id].state != "queued"

        await self.get_request(tenant_id, request_id)
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(is_over)
        except TimeoutError:
            return None
        row = self._requests[request_id]
        if row.state == "queued":
            raise Unavailable("the store is closing")
        return row

    async def ended_samples(
        self, tenant_id: str, sampler_id: str, seq_ids: range, after: int, timeout_s: float
    ) -> tuple[RequestRow, ...]:
        def ended() -> list[RequestRow]:
            rows = [row for row in self._requests.values() if row.end_position > after and row.seq_id in seq_ids]
            rows = [row for row in rows if (row.tenant_id, row.sampler_id) == (tenant_id, sampler_id)]
            return sorted(rows, key=lambda row: row.end_position)[:MAX_ENDED]

        await self.get_sampler(tenant_id, sampler_id)
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self._is_closed or ended())
        if not ended() and self._is_closed:
            raise Unavailable("the store is closing")
        return tuple(ended())

    async def release_results(self, tenant_id: str, sampler_id: str, request_ids: Sequence[str]) -> None:
        rows = [self._requests[each] for each in request_ids if each in self._requests]
        rows = [row for row in rows if (row.tenant_id, row.sampler_id) == (tenant_id, sampler_id)]
        self._released |= {row.request_id for row in rows}

    async def new_requests(self) -> AsyncIterator[Sequence[RequestRow]]:
        groups: asyncio.Queue[Sequence[RequestRow] | None] = asyncio.Queue()
        self._listeners.append(groups)
        try:
            yield tuple(row for row in self._requests.values() if row.state == "queued")
            while (group := await groups.get()) is not None:
                yield group
        finally:
            self._listeners.remove(groups)

    async def finish(self, finished: Sequence[FinishedRequest]) -> None:
        for item in finished:
            found_row(self._requests.get(item.request_id), "request", item.request_id)
        before = dict(self._requests), self._checkpoints.copy(), dict(self._samplers), self._num_ended_samples
        replaced = self._checkpoints.copy()
        try:
            ended = [await self._finish_one(item) for item in finished if self._is_queued(item)]
        except InvalidRequest:
            self._requests, self._checkpoints, self._samplers, self._num_ended_samples = before
            raise
        for row in (item.checkpoint for item in ended if item.checkpoint is not None):
            if (old := replaced.rows.get((row.run_id, row.kind, row.name))) is not None:
                self._note_removed(old, row.created_at)
        self._note_ends(ended)
        await self._notify()

    async def run_log(self, run_id: str, after_seq_id: int) -> tuple[RequestRow, ...]:
        wanted = [
            row
            for row in self._of_run(run_id)
            if row.seq_id > after_seq_id
            and row.state in ("done", "failed")
            and changes_run(row.kind, row.state == "failed", row.category)
        ]
        return tuple(sorted(wanted, key=lambda row: row.seq_id))

    async def run_progress(self, run_id: str) -> tuple[RunRow, int, frozenset[int]]:
        run = found_row(self._runs.get(run_id), "training run", run_id)
        finished = {row.seq_id for row in self._of_run(run_id) if row.state != "queued"}
        first_missing = next(n for n in range(len(finished) + 1) if n not in finished)
        return run, first_missing, frozenset(n for n in finished if n > first_missing)

    async def prune(self, finished_before: float) -> int:
        for row in list(self._requests.values()):
            if row.finished_at is not None and (row.finished_at < finished_before or row.request_id in self._released):
                row = replace(row, result_ref="")
            if row.state != "queued" and self._is_covered(row):
                row = replace(row, payload_ref="")
            self._requests[row.request_id] = row
        return self._blobs.sweep_packs(self._packs_in_use)

    # -- checkpoints
    async def delete_checkpoint(self, tenant_id: str, run_id: str, kind: CheckpointKind, name: str) -> CheckpointRow:
        removed = self._checkpoints.delete(tenant_id, run_id, kind, name)
        self._note_deleted(removed, self._clock())
        return removed

    async def delete_expired_checkpoints(self, now: float) -> tuple[CheckpointRow, ...]:
        expired = self._checkpoints.delete_expired(now)
        for row in expired:
            self._note_deleted(row, now)
        return expired

    async def copy_checkpoint(
        self, copy: CheckpointRow, run: RunRow, session: SessionRow | None, max_stored: Bound = UNBOUNDED
    ) -> CheckpointRow:
        sessions = dict(self._sessions)
        try:
            return await self._copy(copy, run, session, max_stored)
        except (InvalidRequest, NotFound, QuotaReached):
            self._sessions = sessions
            raise

    async def _copy(self, copy: CheckpointRow, run: RunRow, session: SessionRow | None, bound: Bound) -> CheckpointRow:
        if session is not None:
            run = replace(run, session_id=(await self.create_session(session)).session_id)
        for first in self._runs.values():
            if retry_of_run(first) == retry_of_run(run):
                check_repetition(first, run)
                return self._checkpoints.owned(copy.tenant_id, first.spec.run_id, copy.kind, copy.name)
        check_session(run, session)
        if not self._checkpoints.is_used(copy.key):
            raise NotFound.of("checkpoint", str(run.copied_from))
        self._check_stored(copy, run, bound)
        insert_row(self._runs, run.spec.run_id, run)
        self._put_checkpoint(copy, "copy")
        return copy

    async def objects_in_use(self, keys: Sequence[str]) -> frozenset[str]:
        of_samplers = {sampler.adapter_key for sampler in self._samplers.values()}
        return frozenset(key for key in keys if key in of_samplers or self._checkpoints.is_used(key))

    async def doomed_objects(self, key: str | None = None) -> tuple[str, ...]:
        wanted = {row.object_key for row in self._requests.values() if self._reads_later(row)}
        return tuple(each for each in sorted(self._checkpoints.doomed - wanted) if key in (None, each))

    async def forget_doomed_object(self, key: str) -> None:
        self._checkpoints.doomed.discard(key)

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
        row = self._checkpoints.update(tenant_id, run_id, kind, name, is_public, expires_at)
        self._note_changed(row, is_public, expires_at)
        return row

    def _check_new(self, request: RequestRow) -> None:
        if request.request_id in self._requests:
            raise InvalidRequest(f"an id is taken: {request.request_id!r}")

    async def _insert_request(self, request: RequestRow, payload: bytes) -> RequestRow:
        ref = self._blobs.put_payloads([payload])[0]
        row = replace(request, position=len(self._requests) + 1, payload_ref=ref)
        self._requests[row.request_id] = row
        run = self._runs.get(row.run_id)
        if run is not None:
            self._runs[row.run_id] = replace(run, last_request_at=max(run.last_request_at, row.created_at))
        for listener in self._listeners:
            listener.put_nowait((row,))
        await self._notify()
        return row

    def _is_queued(self, item: FinishedRequest) -> bool:
        return self._requests[item.request_id].state == "queued"

    async def _finish_one(self, item: FinishedRequest) -> FinishedRequest:
        row = self._requests[item.request_id]
        item = self._with_stored_checked(row, self._checkpoints.with_name_checked(item))
        self._num_ended_samples += row.sampler_id != ""
        self._requests[item.request_id] = replace(
            row,
            state=item.state,
            finished_at=item.finished_at,
            result_ref=item.result_ref,
            error=item.error,
            category=item.category,
            end_position=self._num_ended_samples if row.sampler_id else 0,
        )
        if item.checkpoint is not None:
            self._checkpoints.put(item.checkpoint)
        if item.sampler is not None:
            await self.create_sampler(item.sampler)
        return item

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _of_run(self, run_id: str) -> Iterable[RequestRow]:
        return (row for row in self._requests.values() if run_id and row.run_id == run_id)

    def _is_covered(self, row: RequestRow) -> bool:
        run = self._runs.get(row.run_id)
        return not row.run_id or (run is not None and (run.is_closed or row.seq_id <= run.snapshot_seq_id))

    def _reads_later(self, row: RequestRow) -> bool:
        is_log = row.run_id in self._runs and row.state in ("queued", "done")
        return bool(row.object_key) and is_log and not self._is_covered(row)

    def _packs_in_use(self, packs: Sequence[str]) -> set[str]:
        refs = (ref for row in self._requests.values() for ref in (row.payload_ref, row.result_ref))
        return {ref.partition(":")[0] for ref in refs} & set(packs)
