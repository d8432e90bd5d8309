"""The store over SQL: reads on their own connections, writes in groups."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from openrl.errors import NotFound, Unavailable
from openrl.protocol.runs import CheckpointKind
from openrl.store import checkpoints, copies, requests, retention, runs, samplers, sessions, tenants
from openrl.store.base import (
    MAX_ENDED,
    ApiKeyRow,
    Blobs,
    CheckpointRow,
    FinishedRequest,
    Page,
    RequestRow,
    RunRow,
    SamplerRow,
    SessionRow,
    SessionState,
    TenantRow,
)
from openrl.store.board import RequestBoard
from openrl.store.engines import NUM_READERS, Engines, open_engines
from openrl.store.group import Change, Committed, CreateRun, Enqueue, Finish, Write
from openrl.store.keys import KeyCache
from openrl.store.ledger import Ledger
from openrl.store.sql_ledger import SqlLedger
from openrl.store.writer import GroupWriter

T = TypeVar("T")
Clock = Callable[[], float]
RELEASED_AT_ONCE = 1000


async def create_store(url: str, blobs: Blobs, clock: Clock = time.time) -> "SqlStore":
    """Open the database at a SQLAlchemy URL ("sqlite:////dir/openrl.db"), creating or migrating its tables.

    The store belongs to the running event loop. One process at a time may take requests over a SQLite
    file; others may use the rest (the command line adds keys). `clock` tells when checkpoints expire.
    Raises InvalidRequest for a URL it cannot serve, Unavailable if the database does not open.
    """
    return SqlStore(await asyncio.to_thread(open_engines, url), blobs, clock)


class SqlStore:
    """`Store` over SQLAlchemy; make one with `create_store`."""

    def __init__(self, engines: Engines, blobs: Blobs, clock: Clock) -> None:
        self._engines = engines
        self._blobs = blobs
        self._clock = clock
        self._board = RequestBoard()
        self._keys = KeyCache(time.monotonic)
        self._writer = GroupWriter(engines.writer, blobs, self._publish)
        self._readers = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="store-reader")
        self._released: list[tuple[str, str, str]] = []  # tenant, sampler, request
        self._is_closed = False
        self._ledger = SqlLedger(self._read, self._change, clock)

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        await self._writer.close()
        self._board.close()
        await asyncio.to_thread(self._readers.shutdown)
        self._engines.dispose()

    # -- tenants and keys
    async def create_tenant(self, tenant: TenantRow) -> TenantRow:
        return await self._change(tenants.create_tenant, tenant)

    async def list_tenants(self) -> tuple[TenantRow, ...]:
        return await self._read(tenants.list_tenants)

    async def add_api_key(self, key: ApiKeyRow) -> None:
        await self._change(tenants.add_api_key, key)
        self._keys.clear()

    async def list_api_keys(self, tenant_id: str | None = None) -> tuple[ApiKeyRow, ...]:
        return await self._read(tenants.list_api_keys, tenant_id)

    async def revoke_api_key(self, key_hash: str, now: float) -> None:
        await self._change(tenants.revoke_api_key, key_hash, now)
        self._keys.clear()

    async def tenant_of_key(self, key_hash: str) -> str:
        tenant_id = self._keys.get(key_hash)
        if tenant_id is None:
            version = self._keys.version
            tenant_id = await self._read(tenants.tenant_of_key, key_hash)
            self._keys.put(key_hash, tenant_id, version)
        return tenant_id

    # -- sessions
    async def create_session(self, session: SessionRow) -> SessionRow:
        return await self._change(sessions.create_session, session)

    async def get_session(self, tenant_id: str, session_id: str) -> SessionRow:
        return await self._read(sessions.get_session, tenant_id, session_id)

    async def list_sessions(self, tenant_id: str, limit: int, offset: int) -> Page[SessionRow]:
        return await self._read(sessions.list_sessions, tenant_id, limit, offset)

    async def heartbeat(self, tenant_id: str, session_id: str, now: float) -> None:
        await self._change(sessions.heartbeat, tenant_id, session_id, now)

    async def end_session(self, tenant_id: str, session_id: str, state: SessionState, reason: str) -> None:
        await self._change(sessions.end_session, tenant_id, session_id, state, reason)

    async def sessions_silent_since(self, before: float) -> tuple[SessionRow, ...]:
        return await self._read(sessions.sessions_silent_since, before)

    # -- runs
    async def create_run(self, run: RunRow, request: RequestRow, payload: bytes) -> tuple[RunRow, RequestRow]:
        return await self._write(CreateRun(run, request, payload))

    async def get_run(self, tenant_id: str, run_id: str) -> RunRow:
        return await self._read(runs.get_run, tenant_id, run_id)

    async def list_runs(self, tenant_id: str, limit: int, offset: int, project_id: str | None = None) -> Page[RunRow]:
        return await self._read(runs.list_runs, tenant_id, limit, offset, project_id)

    async def runs_of_session(self, tenant_id: str, session_id: str) -> tuple[RunRow, ...]:
        return await self._read(runs.runs_of_session, tenant_id, session_id)

    async def live_runs(self) -> tuple[RunRow, ...]:
        return await self._read(runs.live_runs)

    async def close_run(self, run_id: str, kept: CheckpointRow | None = None) -> None:
        await self._change(checkpoints.close_run, run_id, kept)

    async def record_snapshot(self, run_id: str, seq_id: int, key: str) -> None:
        await self._change(runs.record_snapshot, run_id, seq_id, key)

    # -- samplers
    async def create_sampler(self, sampler: SamplerRow) -> SamplerRow:
        return await self._change(samplers.create_sampler, sampler)

    async def get_sampler(self, tenant_id: str, sampler_id: str) -> SamplerRow:
        return await self._read(samplers.get_sampler, tenant_id, sampler_id)

    async def samplers_of_session(self, tenant_id: str, session_id: str) -> tuple[SamplerRow, ...]:
        return await self._read(samplers.samplers_of_session, tenant_id, session_id)

    async def join_sampler(self, tenant_id: str, sampler_id: str) -> int:
        return await self._change(samplers.join_sampler, tenant_id, sampler_id)

    # -- requests
    async def enqueue(self, request: RequestRow, payload: bytes) -> RequestRow:
        return await self._write(Enqueue(request, payload))

    async def get_request(self, tenant_id: str, request_id: str) -> RequestRow:
        return await self._read(requests.get_request, tenant_id, request_id)

    async def wait_finished(self, tenant_id: str, request_id: str, timeout_s: float) -> RequestRow | None:
        # The waiter is there before the row is read: an end between the two is not missed.
        with self._board.waiting(request_id) as ending:
            row = self._board.look_up(request_id)
            if row is None:
                row = await self._read(requests.get_request, tenant_id, request_id)
            if row.tenant_id != tenant_id:
                raise NotFound.of("request", request_id)
            if row.state != "queued":
                return row
            giving_up = asyncio.get_running_loop().call_later(timeout_s, _give_up, ending)
            try:
                return await ending
            finally:
                giving_up.cancel()

    async def ended_samples(
        self, tenant_id: str, sampler_id: str, seq_ids: range, after: int, timeout_s: float
    ) -> tuple[RequestRow, ...]:
        # As above: what ends while the rows are read is watched already.
        with self._board.watching(sampler_id, seq_ids, after) as watch:
            rows = await self._read(requests.ended_samples, tenant_id, sampler_id, seq_ids, after)
            if rows or timeout_s <= 0.0:
                return rows
            giving_up = asyncio.get_running_loop().call_later(timeout_s, _give_up, watch.first)
            try:
                await watch.first
            finally:
                giving_up.cancel()
            return tuple(watch.rows[:MAX_ENDED])

    async def release_results(self, tenant_id: str, sampler_id: str, request_ids: Sequence[str]) -> None:
        # Not at once: a commit for every poll would hold up the samples that arrive meanwhile.
        self._released += [(tenant_id, sampler_id, each) for each in request_ids]
        if len(self._released) >= RELEASED_AT_ONCE:
            await self._release()

    async def new_requests(self) -> AsyncIterator[Sequence[RequestRow]]:
        with self._board.listening() as groups:
            last_position, unfinished = await self._read(requests.backlog)
            yield unfinished
            while (group := await groups.get()) is not None:
                # Groups that were committed before the backlog was read are part of it.
                if fresh := tuple(row for row in group if row.position > last_position):
                    yield fresh

    async def finish(self, finished: Sequence[FinishedRequest]) -> None:
        if finished:
            await self._write(Finish(tuple(finished)))

    async def run_log(self, run_id: str, after_seq_id: int) -> tuple[RequestRow, ...]:
        return await self._read(requests.run_log, run_id, after_seq_id)

    async def run_progress(self, run_id: str) -> tuple[RunRow, int, frozenset[int]]:
        return await self._read(requests.run_progress, run_id)

    async def prune(self, finished_before: float) -> int:
        await self._release()
        while await self._change(retention.release_results, finished_before) == retention.BATCH:
            pass
        while await self._change(retention.release_payloads) == retention.BATCH:
            pass
        self._board.forget_recent()
        return await asyncio.to_thread(self._blobs.sweep_packs, self._is_pack_live)

    # -- checkpoints
    async def get_checkpoint(self, tenant_id: str, run_id: str, kind: CheckpointKind, name: str) -> CheckpointRow:
        return await self._read(checkpoints.get_checkpoint, tenant_id, run_id, kind, name, self._clock())

    async def list_checkpoints(
        self, tenant_id: str, limit: int, offset: int, run_id: str | None = None
    ) -> Page[CheckpointRow]:
        return await self._read(checkpoints.list_checkpoints, tenant_id, limit, offset, run_id, self._clock())

    async def delete_checkpoint(self, tenant_id: str, run_id: str, kind: CheckpointKind, name: str) -> CheckpointRow:
        return await self._change(checkpoints.delete_checkpoint, tenant_id, run_id, kind, name, self._clock())

    async def delete_expired_checkpoints(self, now: float) -> tuple[CheckpointRow, ...]:
        return await self._change(checkpoints.delete_expired, now)

    async def copy_checkpoint(self, copy: CheckpointRow, run: RunRow, session: SessionRow | None) -> CheckpointRow:
        return await self._change(copies.copy_checkpoint, copy, run, session)

    async def doomed_objects(self, key: str | None = None) -> tuple[str, ...]:
        return await self._read(checkpoints.list_doomed, key)

    async def forget_doomed_object(self, key: str) -> None:
        await self._change(checkpoints.forget_doomed, key)

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
        return await self._change(
            checkpoints.update_checkpoint, tenant_id, run_id, kind, name, is_public, expires_at, self._clock()
        )

    async def _release(self) -> None:
        released, self._released = self._released, []
        if released:
            await self._change(requests.release_results, released)

    async def _write(self, write: Write) -> Any:
        return await self._writer.submit(write)

    async def _change(self, query: Callable[..., T], *arguments: Any) -> T:
        return await self._write(Change(partial(_call, query, arguments)))

    async def _read(self, query: Callable[..., T], *arguments: Any) -> T:
        if self._is_closed:
            raise Unavailable("the store is closed")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self._read_now, query, arguments)

    def _read_now(self, query: Callable[..., T], arguments: Sequence[Any]) -> T:
        try:
            with self._engines.reader.begin() as connection:
                return query(connection, *arguments)
        except SQLAlchemyError as error:
            raise Unavailable(f"the store cannot read at the moment: {error}") from error

    def _is_pack_live(self, pack: str) -> bool:
        return self._read_now(retention.is_pack_live, (pack,))

    def _publish(self, committed: Committed) -> None:
        self._board.publish(committed.arrived, committed.ended)


def _give_up(ending: "asyncio.Future[RequestRow | None]") -> None:
    if not ending.done():
        ending.set_result(None)


def _call(query: Callable[..., T], arguments: Sequence[Any], connection: Connection) -> T:
    return query(connection, *arguments)
