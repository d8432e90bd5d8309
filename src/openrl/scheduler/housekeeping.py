"""Clears away what time has made useless: silent sessions, old payloads, expired checkpoints."""

from collections import defaultdict
from collections.abc import Callable

import structlog

from openrl.config import StoreConfig
from openrl.errors import NotFound
from openrl.scheduler.events import SessionClosed
from openrl.scheduler.store_writer import drop_ephemeral_samplers, retried
from openrl.store.base import Blobs, Store
from openrl.store.doomed import free_doomed_objects
from openrl.store.unused_objects import free_checkpoints, free_custom_losses, free_snapshots, free_traces

LOST_SAVE_S = 86400.0
"""Files of a save are looked upon as lost when no row refers to them after this long."""
LOST_SAVES_EVERY_S = 3600.0
"""Telling them apart takes a listing of all checkpoints."""
_log = structlog.get_logger(__name__)


class Housekeeping:
    """Each method is one sweep; nothing is lost if one is cut short or repeated."""

    def __init__(
        self, store: Store, blobs: Blobs, session_timeout_s: float, on_closed: Callable[[SessionClosed], None]
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._session_timeout_s = session_timeout_s
        self._next_lost_saves_at = 0.0
        self._on_closed = on_closed
        self._last_heartbeats: dict[str, float] = {}  # of the sessions that the last sweep found silent

    async def expire_sessions(self, now: float) -> None:
        """End sessions whose client has not been heard of, neither for long nor since the last call.

        The second condition does not depend on what our clock and those of the gateways say: their jumps end nothing.
        """
        reason = f"no heartbeat for {self._session_timeout_s:.0f} s"
        silent = await retried(lambda: self._store.sessions_silent_since(now - self._session_timeout_s))
        known, self._last_heartbeats = self._last_heartbeats, {s.session_id: s.last_heartbeat_at for s in silent}
        for session in silent:
            if known.get(session.session_id) != session.last_heartbeat_at:
                continue
            await retried(
                lambda session=session: self._store.end_session(
                    session.tenant_id, session.session_id, "expired", reason
                )
            )
            _log.info("session expired", session_id=session.session_id, tenant_id=session.tenant_id)
            await self.close_session(session.tenant_id, session.session_id)

    async def close_ended_sessions(self) -> None:
        """Close the runs of sessions that ended in another process, or while no scheduler ran."""
        by_session: dict[tuple[str, str], list[str]] = defaultdict(list)
        for run in await retried(self._store.live_runs):
            by_session[run.spec.tenant_id, run.session_id].append(run.spec.run_id)
        for (tenant_id, session_id), run_ids in by_session.items():
            if await self._has_ended(tenant_id, session_id):
                self._on_closed(SessionClosed(session_id, tuple(run_ids)))

    async def close_session(self, tenant_id: str, session_id: str) -> None:
        """Drop the samples of a session that has ended, save and close its runs, free its samplers."""
        runs = await retried(lambda: self._store.runs_of_session(tenant_id, session_id))
        live = tuple(run.spec.run_id for run in runs if not run.is_closed)
        self._on_closed(SessionClosed(session_id, live))
        await drop_ephemeral_samplers(self._store, self._blobs, tenant_id, session_id)

    async def delete_expired_checkpoints(self, now: float) -> None:
        """Remove rows, then files, of checkpoints past their time, and files that were left behind."""
        while expired := await retried(lambda: self._store.delete_expired_checkpoints(now)):
            _log.info("checkpoints expired", num_checkpoints=len(expired))
        freed_bytes = await retried(lambda: free_doomed_objects(self._store, self._blobs))
        if freed_bytes:
            _log.info("checkpoint files deleted", freed_bytes=freed_bytes)

    async def free_unused_objects(self, now: float, retention: StoreConfig) -> None:
        """Delete snapshots of closed runs, and custom losses and traces that nobody has used for long."""
        freed_bytes = await retried(lambda: free_snapshots(self._store, self._blobs))
        losses_before, traces_before = now - retention.custom_loss_retention_s, now - retention.trace_retention_s
        freed_bytes += await retried(lambda: free_custom_losses(self._store, self._blobs, losses_before))
        freed_bytes += await retried(lambda: free_traces(self._blobs, traces_before))
        if now >= self._next_lost_saves_at:
            self._next_lost_saves_at = now + LOST_SAVES_EVERY_S
            freed_bytes += await retried(lambda: free_checkpoints(self._store, self._blobs, now - LOST_SAVE_S))
        if freed_bytes:
            _log.info("unused files deleted", freed_bytes=freed_bytes)

    async def prune(self, finished_before: float) -> None:
        """Free payloads and results nobody can ask for any more."""
        freed_bytes = await retried(lambda: self._store.prune(finished_before))
        if freed_bytes:
            _log.info("pruned", freed_bytes=freed_bytes)

    async def _has_ended(self, tenant_id: str, session_id: str) -> bool:
        try:
            session = await retried(lambda: self._store.get_session(tenant_id, session_id))
        except NotFound:
            return False
        return session.state != "active"
