"""The store over SQL: reads on their own connections, writes in groups."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from openrl.errors import Unavailable
from openrl.protocol.runs import CheckpointKind
from openrl.store import checkpoints, copies, requests, retention, runs, samplers, sessions, shares
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
from openrl.store.board import RequestBoard
from openrl.store.cluster import Cluster, Signal
from openrl.store.engines import NUM_READERS, Engines, open_engines
from openrl.store.failures import unavailable
from openrl.store.group import Change, Committed, CreateRun, Enqueue, Finish, Write, is_unfit, unfit
from openrl.store.group_log import GroupLog, forget_old_writers
from openrl.store.identities import Actor, Identities, ShareRow
from openrl.store.ledger import Ledger
from openrl.store.link import Link
from openrl.store.outage import Outage
from openrl.store.postgres import listen_options
from openrl.store.quotas import UNBOUNDED, Bound, Quotas
from openrl.store.sql_cluster import SqlCluster
from openrl.store.sql_identities import SqlIdentities
from openrl.store.sql_ledger import SqlLedger
from openrl.store.sql_quotas import SqlQuotas
from openrl.store.writer import GroupWriter, Timed

T = TypeVar("T")
Clock = Callable[[], float]
RELEASED_AT_ONCE = 1000


async def create_store(
    url: str, blobs: Blobs, clock: Clock = time.time, timed: Timed | None = None, *, migrates: bool = True
) -> "SqlStore":
    """Open the database at a URL; `migrates`: creating or migrating its tables, otherwise SchemaTooOld is raised.

    "sqlite:////dir/openrl.db": one process at a time may take requests; others may use the rest (the command line
    adds keys). "postgresql://user@host/database": any number of processes. The store belongs to the running event
    loop. `clock` tells when checkpoints expire; `timed` hears how long commits took. Raises InvalidRequest for a URL it
    cannot serve, Unavailable if the database does not open.
    """
    store = SqlStore(await asyncio.to_thread(partial(open_engines, url, migrates=migrates)), blobs, clock, timed)
    try:
        await store.start()
    except Unavailable:
        await store.close()
        raise
    return store


class SqlStore:
    """`Store` over SQLAlchemy; make one with `create_store`."""

    def __init__(self, engines: Engines, blobs: Blobs, clock: Clock, timed: Timed | None = None) -> None:
        self._engines = engines
        self._blobs = blobs
        self._clock = clock
        self._board = RequestBoard()
        self._outage = Outage()
        log = GroupLog(uuid.uuid4().hex) if engines.is_shared else None
        self._writer = GroupWriter(engines.writer, blobs, self._publish, self._outage, log, self._give_up, timed)
        self._readers = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="store-reader")
        self._released: list[tuple[str, str, str]] = []  # tenant, sampler, request
        self._is_closed = False
        self._ledger = SqlLedger(self._read, self._change, clock)
        self._quotas = SqlQuotas(self._read, self._change, clock)
        self._link = None if log is None else self._create_link(log.writer_id)
        shout = None if self._link is None else self._link.tell_signal
        self._cluster = SqlCluster(self._read, self._change, self._change_unfenced, self._writer, shout)
        self._identities = SqlIdentities(self._read, self._change, self._submit, self._cluster.tell)
        self._cluster.call(self._on_signal)

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    @property
    def identities(self) -> Identities:
        return self._identities

    @property
    def cluster(self) -> Cluster:
        return self._cluster

    @property
    def quotas(self) -> Quotas:
        return self._quotas

    async def start(self) -> None:
        """Hear of what other processes commit, if there are any."""
        if self._link is not None:
            await self._change_unfenced(forget_old_writers)
            await self._link.start()

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._link is not None:
            await self._link.close()
        await self._writer.close()
        self._outage.close()
        self._board.close()
        self._cluster.close()
        await asyncio.to_thread(self._readers.shutdown)
        self._engines.dispose()

    # -- sessions
    async def create_session(self, session: SessionRow) -> SessionRow:
        return await self._change(sessions.create_session, session)

    async def get_session(self, tenant_id: str, session_id: str) -> SessionRow:
        return await self._read(sessions.get_session, tenant_id, session_id)

    async def list_sessions(
        self, tenant_id: str, limit: int, offset: int, project_id: str | None = None
    ) -> Page[SessionRow]:
        return await self._read(sessions.list_sessions, tenant_id, limit, offset, project_id)

    async def heartbeat(self, tenant_id: str, session_id: str, now: float) -> None:
        await self._change(sessions.heartbeat, tenant_id, session_id, now)

    async def end_session(self, tenant_id: str, session_id: str, state: SessionState, reason: str) -> None:
        await self._change(sessions.end_session, tenant_id, session_id, state, reason)

    async def sessions_silent_since(self, before: float) -> tuple[SessionRow, ...]:
        return await self._read(sessions.sessions_silent_since, before)

    # -- runs
    async def create_run(
        self, run: RunRow, request: RequestRow, payload: bytes, max_live: Bound = UNBOUNDED
    ) -> tuple[RunRow, RequestRow]:
        return await self._write(CreateRun(run, request, payload, max_live))

    async def get_run(self, tenant_id: str, run_id: str) -> RunRow:
        return await self._read(runs.get_run, tenant_id, run_id)

    async def list_runs(self, tenant_id: str, limit: int, offset: int, project_id: str | None = None) -> Page[RunRow]:
        return await self._read(runs.list_runs, tenant_id, limit, offset, project_id)

    async def free_seq_ids(self, tenant_id: str, run_id: str) -> tuple[int, frozenset[int]]:
        return await self._read(requests.free_seq_ids, tenant_id, run_id)

    async def runs_of_session(self, tenant_id: str, session_id: str) -> tuple[RunRow, ...]:
        return await self._read(runs.runs_of_session, tenant_id, session_id)

    async def live_runs(self) -> tuple[RunRow, ...]:
        return await self._read(runs.live_runs)

    async def close_run(self, run_id: str, kept: CheckpointRow | None = None) -> None:
        await self._change(checkpoints.close_run, run_id, kept)

    async def record_snapshot(self, run_id: str, seq_id: int, key: str, size_bytes: int = 0) -> None:
        await self._change(runs.record_snapshot, run_id, seq_id, key, size_bytes)

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

    async def cancel_request(self, tenant_id: str, request_id: str, now: float) -> bool:
        row = await self.get_request(tenant_id, request_id)
        if row.state == "queued":
            await self.finish([FinishedRequest(request_id, "cancelled", now)])
        return row.state == "queued"

    async def wait_finished(self, tenant_id: str, request_id: str, timeout_s: float) -> RequestRow | None:
        # The waiter is there before the row is read: an end between the two is not missed.
        with self._board.waiting(request_id) as ending:
            row = self._board.look_up(tenant_id, request_id)
            if row is None:
                num_doubts = self._board.num_doubts
                row = await self._read(requests.get_request, tenant_id, request_id)
                if row.state == "queued" and not ending.done():
                    self._board.keep_waited(row, num_doubts)
            if row.state != "queued":
                return row
            giving_up = asyncio.get_running_loop().call_later(timeout_s, _end_wait, ending)
            try:
                return await ending
            finally:
                giving_up.cancel()

    async def ended_samples(
        self, tenant_id: str, sampler_id: str, seq_ids: range, after: int, timeout_s: float
    ) -> tuple[RequestRow, ...]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            # As above: what ends while the rows are read is watched already.
            with self._board.watching(sampler_id, seq_ids, after) as watch:
                rows = await self._read(requests.ended_samples, tenant_id, sampler_id, seq_ids, after)
                if rows or loop.time() >= deadline:
                    return rows
                giving_up = loop.call_at(deadline, _end_wait, watch.first)
                try:
                    await watch.first
                finally:
                    giving_up.cancel()
                if watch.rows:
                    return tuple(watch.rows[:MAX_ENDED])

    async def release_results(self, tenant_id: str, sampler_id: str, request_ids: Sequence[str]) -> None:
        # Not at once: a commit for every poll would hold up the samples that arrive meanwhile.
        self._released += [(tenant_id, sampler_id, each) for each in request_ids]
        if len(self._released) >= RELEASED_AT_ONCE:
            await self._release()

    async def new_requests(self) -> AsyncIterator[Sequence[RequestRow]]:
        with self._board.listening() as groups:
            last_position, unfinished = await self._read(requests.backlog)
            if self._link is not None:
                self._link.start_at(last_position)
            yield unfinished
            while (group := await groups.get()) is not None:
                # Groups that were committed before the backlog was read are part of it.
                if fresh := tuple(row for row in group if row.position > last_position):
                    last_position = fresh[-1].position
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
        if self._link is not None:
            await self._link.tell_pruned()
        return await asyncio.to_thread(self._blobs.sweep_packs, self._packs_in_use)

    # -- checkpoints
    async def get_checkpoint(self, tenant_id: str, run_id: str, kind: CheckpointKind, name: str) -> CheckpointRow:
        return await self._read(checkpoints.get_checkpoint, tenant_id, run_id, kind, name, self._clock())

    async def list_checkpoints(
        self, tenant_id: str, limit: int, offset: int, run_id: str | None = None, project_id: str | None = None
    ) -> Page[CheckpointRow]:
        found = self._read(checkpoints.list_checkpoints, tenant_id, limit, offset, run_id, project_id, self._clock())
        return await found

    async def delete_checkpoint(self, tenant_id: str, run_id: str, kind: CheckpointKind, name: str) -> CheckpointRow:
        return await self._change(checkpoints.delete_checkpoint, tenant_id, run_id, kind, name, self._clock())

    async def delete_expired_checkpoints(self, now: float) -> tuple[CheckpointRow, ...]:
        return await self._change(checkpoints.delete_expired, now)

    async def copy_checkpoint(
        self, copy: CheckpointRow, run: RunRow, session: SessionRow | None, max_stored: Bound = UNBOUNDED
    ) -> CheckpointRow:
        return await self._change(copies.copy_checkpoint, copy, run, session, max_stored)

    async def objects_in_use(self, keys: Sequence[str]) -> frozenset[str]:
        return await self._read(checkpoints.objects_in_use, keys)

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

    # -- shares
    async def create_share(self, share: ShareRow, by: Actor) -> ShareRow:
        return await self._change(shares.create_share, share, by, self._clock())

    async def list_shares(self, tenant_id: str, project_id: str | None = None) -> tuple[ShareRow, ...]:
        return await self._read(shares.list_shares, tenant_id, project_id)

    async def revoke_share(self, tenant_id: str, share_id: str, now: float, by: Actor) -> ShareRow:
        return await self._change(shares.revoke_share, tenant_id, share_id, now, by)

    async def shared_checkpoint(self, token_hash: str, run_id: str, kind: CheckpointKind, name: str) -> CheckpointRow:
        return await self._read(shares.shared_checkpoint, token_hash, run_id, kind, name, self._clock())

    async def _release(self) -> None:
        released, self._released = self._released, []
        if released:
            await self._change(requests.release_results, released)

    async def _write(self, write: Write) -> Any:
        return await self._writer.submit(write)

    async def _change(self, query: Callable[..., T], *arguments: Any) -> T:
        return await self._write(Change(partial(_call, query, arguments)))

    def _submit(self, query: Callable[..., Any], *arguments: Any) -> "asyncio.Future[Any]":
        return self._writer.submit(Change(partial(_call, query, arguments)))

    async def _change_unfenced(self, query: Callable[..., T], *arguments: Any) -> T:
        return await self._write(Change(partial(_call, query, arguments), is_fenced=False))

    async def _read(self, query: Callable[..., T], *arguments: Any) -> T:
        if self._is_closed:
            raise Unavailable("the store is closed")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self._read_now, query, arguments)

    def _read_now(self, query: Callable[..., T], arguments: Sequence[Any]) -> T:
        def attempt() -> T:
            with self._engines.reader.begin() as connection:
                return query(connection, *arguments)

        try:
            return self._outage.outlast(attempt)
        except (SQLAlchemyError, OverflowError, UnicodeEncodeError) as error:
            if is_unfit(error):
                raise unfit(error) from error
            raise unavailable("read", error) from error

    def _packs_in_use(self, packs: Sequence[str]) -> frozenset[str]:
        return self._read_now(retention.packs_in_use, (packs,))

    def _on_signal(self, signal: Signal) -> None:
        if signal.kind == "keys_changed":
            self._identities.forget()

    def _publish(self, committed: Committed) -> None:
        if self._link is None:
            self._board.publish(committed.arrived, committed.ended)
        else:
            self._link.publish(committed)

    def _give_up(self, group: int) -> None:
        if self._link is not None:
            self._link.give_up(group)

    def _create_link(self, writer_id: str) -> Link:
        options = listen_options(self._engines.writer)
        return Link(writer_id, options, self._board, self._read, lambda: self._writer.number, self._hear)

    def _hear(self, signal: Signal) -> None:
        self._cluster.hear(signal)


def _end_wait(ending: "asyncio.Future[RequestRow | None]") -> None:
    if not ending.done():
        ending.set_result(None)


def _call(query: Callable[..., T], arguments: Sequence[Any], connection: Connection) -> T:
    return query(connection, *arguments)
