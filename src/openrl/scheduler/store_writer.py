"""Carries out what the scheduler decided about stored things, in order, retrying while the store is away."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from openrl.errors import LeaseLost, NotFound, Unavailable
from openrl.protocol.runs import SamplerSpec
from openrl.scheduler.actions import Finish, LoadRun, LoadSampler, MarkRunClosed, RecordSnapshot
from openrl.scheduler.events import RunLoaded, SamplerLoaded
from openrl.scheduler.records import finished_request
from openrl.store.base import Blobs, CheckpointRow, Store
from openrl.store.doomed import free_doomed_objects
from openrl.store.ledger import DEFAULT_PROJECT
from openrl.store.object_keys import read_snapshot_key

StoreAction = Finish | LoadRun | LoadSampler | RecordSnapshot | MarkRunClosed
Loaded = RunLoaded | SamplerLoaded
T = TypeVar("T")
_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 5.0
_log = structlog.get_logger(__name__)


class StoreWriter:
    """Everything that came in since the last turn is written in the next: one `finish` for all of it."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        clock: Callable[[], float],
        on_loaded: Callable[[Loaded], None],
        expired_run_retention_s: float,
    ) -> None:
        self._expired_run_retention_s = expired_run_retention_s
        self._store = store
        self._blobs = blobs
        self._clock = clock
        self._on_loaded = on_loaded
        self._actions: list[StoreAction] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def put(self, action: StoreAction) -> None:
        """Queue an action."""
        self._actions.append(action)
        self._idle.clear()
        self._wake.set()

    async def flush(self) -> None:
        """Wait until everything that was queued is written."""
        await self._idle.wait()

    async def run(self) -> None:
        """Write for ever."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._wake.wait()
                self._wake.clear()
                actions, self._actions = self._actions, []
                await self._write(actions, tasks)
                if not self._actions:
                    self._idle.set()

    async def _write(self, actions: Sequence[StoreAction], tasks: asyncio.TaskGroup) -> None:
        """Finishes first: the other actions rely on those before them, and none on being before one."""
        await self._finish([action for action in actions if isinstance(action, Finish)])
        for action in actions:
            match action:
                case Finish():
                    pass
                case LoadRun(run_id):
                    tasks.create_task(self._load_run(run_id))
                case LoadSampler():
                    tasks.create_task(self._load_sampler(action))
                case RecordSnapshot():
                    await self._record_snapshot(action)
                case MarkRunClosed():
                    tasks.create_task(self._close_run(action))

    async def _finish(self, finishes: Sequence[Finish]) -> None:
        if not finishes:
            return
        now = self._clock()
        rows = [finished_request(finish, now) for finish in finishes]
        await retried(lambda: self._store.finish(rows))
        if any(row.checkpoint is not None or row.sampler is not None for row in rows):  # one may be replaced or refused
            await retried(lambda: free_doomed_objects(self._store, self._blobs))

    async def _record_snapshot(self, action: RecordSnapshot) -> None:
        await retried(lambda: self._store.record_snapshot(action.run_id, action.seq_id, action.key, action.size_bytes))
        if action.old_key is not None and action.old_key != action.key:
            await delete_object(self._blobs, action.old_key)
        await retried(lambda: free_doomed_objects(self._store, self._blobs))  # some may have waited for this snapshot

    async def _close_run(self, action: MarkRunClosed) -> None:
        session = await retried(lambda: self._store.get_session(action.tenant_id, action.session_id))
        has_expired = session.state == "expired" and action.snapshot_key is not None
        kept = await retried(lambda: self._keep(action)) if has_expired else None
        await retried(lambda: self._store.close_run(action.run_id, kept))
        if session.state != "active":
            await drop_ephemeral_samplers(self._store, self._blobs, action.tenant_id, action.session_id)

    async def _keep(self, action: MarkRunClosed) -> CheckpointRow:
        """Copy the last snapshot of a run whose client has gone to where checkpoints are."""
        assert action.snapshot_key is not None
        _, seq_id = read_snapshot_key(action.snapshot_key)
        name, now = f"expired-{seq_id:06d}", self._clock()
        key = f"checkpoints/{action.run_id}/weights/{name}"
        files = await asyncio.to_thread(self._blobs.get_object, action.snapshot_key)
        return CheckpointRow(
            run_id=action.run_id,
            kind="weights",
            name=name,
            tenant_id=action.tenant_id,
            key=key,
            size_bytes=await asyncio.to_thread(self._blobs.put_object, key, files),
            created_at=now,
            expires_at=now + self._expired_run_retention_s,
        )

    async def _load_run(self, run_id: str) -> None:
        try:
            run, next_seq, finished = await retried(lambda: self._store.run_progress(run_id))
        except NotFound:
            self._on_loaded(RunLoaded(run_id, None))
            return
        log = await retried(lambda: self._store.run_log(run_id, run.snapshot_seq_id))
        project_id = await self._project_of(run.spec.tenant_id, run.session_id)
        self._on_loaded(RunLoaded(run_id, run, next_seq, finished, log, project_id))

    async def _load_sampler(self, action: LoadSampler) -> None:
        try:
            row = await retried(lambda: self._store.get_sampler(action.tenant_id, action.sampler_id))
        except NotFound:
            self._on_loaded(SamplerLoaded(action.sampler_id, None))
            return
        project_id = await self._project_of(row.tenant_id, row.session_id)
        spec = SamplerSpec(row.sampler_id, row.base_model, row.adapter_key)
        self._on_loaded(SamplerLoaded(action.sampler_id, spec, row.session_id, project_id))

    async def _project_of(self, tenant_id: str, session_id: str) -> str:
        try:
            session = await retried(lambda: self._store.get_session(tenant_id, session_id))
        except NotFound:
            return DEFAULT_PROJECT
        return session.project_id


async def retried(call: Callable[[], Awaitable[T]]) -> T:
    """The result of `call`, tried again with growing pauses while the store cannot be reached; raises LeaseLost."""
    pause_s = _FIRST_RETRY_S
    while True:
        try:
            return await call()
        except LeaseLost:  # it comes back to nobody: what we would write is another's to decide
            raise
        except (Unavailable, OSError) as error:
            _log.warning("store unavailable", error=str(error), retry_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_RETRY_S)


async def delete_object(blobs: Blobs, key: str) -> None:
    """Delete files nobody refers to; files that cannot be deleted are left behind and logged."""
    try:
        await asyncio.to_thread(blobs.delete_object, key)
    except (OSError, Unavailable) as error:
        _log.warning("files left behind", key=key, error=str(error))


async def drop_ephemeral_samplers(store: Store, blobs: Blobs, tenant_id: str, session_id: str) -> None:
    """Delete the files of the unnamed sampler saves of a session that has ended."""
    for sampler in await retried(lambda: store.samplers_of_session(tenant_id, session_id)):
        if sampler.is_ephemeral and sampler.adapter_key is not None:
            await delete_object(blobs, sampler.adapter_key)
