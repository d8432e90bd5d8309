"""Deletes objects that nobody can ask for any more: old snapshots, lost saves, custom losses, session traces.

Each function is one sweep and returns the freed bytes. The keys are listed before the rows are read: what comes into
being meanwhile is not in the list.
"""

import asyncio
from collections.abc import Iterable

import structlog

from openrl.errors import Unavailable
from openrl.store.base import Blobs, Store
from openrl.store.object_keys import CHECKPOINTS, CUSTOM_LOSSES, SNAPSHOTS, TRACES, read_snapshot_key

_log = structlog.get_logger(__name__)


async def free_snapshots(store: Store, blobs: Blobs) -> int:
    """Snapshots of closed runs, which take no more requests, and those that a newer one has replaced."""
    keys = await asyncio.to_thread(blobs.list_objects, SNAPSHOTS)
    live = {run.spec.run_id: run for run in await store.live_runs()} if keys else {}
    unused: list[str] = []
    for key in keys:
        run_id, seq_id = read_snapshot_key(key)
        run = live.get(run_id)
        # A larger number than the row's: just written, about to be recorded.
        if run is None or (key != run.snapshot_key and seq_id <= run.snapshot_seq_id):
            unused.append(key)
    return await _delete(blobs, unused)


async def free_checkpoints(store: Store, blobs: Blobs, written_before: float) -> int:
    """Files that a save left behind when its worker was lost: no checkpoint and no sampler came of them."""
    written = await asyncio.to_thread(blobs.list_objects, CHECKPOINTS)
    old = [key for key, written_at in written.items() if written_at < written_before]
    used = await store.objects_in_use(old) if old else frozenset[str]()
    return await _delete(blobs, [key for key in old if key not in used])


async def free_custom_losses(store: Store, blobs: Blobs, used_before: float) -> int:
    """Definitions last used before the bound, by no session that is active or has an open run."""
    written = await asyncio.to_thread(blobs.list_objects, CUSTOM_LOSSES)
    old = [key for key, written_at in written.items() if written_at < used_before]
    used = await store.ledger.losses_in_use(used_before) if old else frozenset[str]()
    unused = [key for key in old if key not in used]
    freed_bytes = await _delete(blobs, unused)
    if unused:
        await store.ledger.forget_losses(unused)
    return freed_bytes


async def free_traces(blobs: Blobs, written_before: float) -> int:
    """Traces built before the bound; who asks again gets a new one."""
    written = await asyncio.to_thread(blobs.list_objects, TRACES)
    return await _delete(blobs, [key for key, written_at in written.items() if written_at < written_before])


async def _delete(blobs: Blobs, keys: Iterable[str]) -> int:
    """What cannot be deleted waits for the next sweep."""
    freed_bytes = 0
    for key in keys:
        try:
            freed_bytes += await asyncio.to_thread(blobs.delete_object, key)
        except (OSError, Unavailable) as error:
            _log.warning("files left for the next sweep", key=key, error=str(error))
    return freed_bytes
