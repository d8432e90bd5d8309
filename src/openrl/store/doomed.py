"""Deletes the files of checkpoints that nobody refers to any more."""

import asyncio

import structlog

from openrl.errors import Unavailable
from openrl.store.base import Blobs, Store

_log = structlog.get_logger(__name__)


async def free_doomed_objects(store: Store, blobs: Blobs, key: str | None = None) -> int:
    """Delete them (only those under `key`, if given); returns freed bytes.

    What cannot be deleted waits for a next time.
    """
    freed_bytes = 0
    for doomed in await store.doomed_objects(key):
        try:
            freed_bytes += await asyncio.to_thread(blobs.delete_object, doomed)
        except (OSError, Unavailable) as error:
            _log.warning("files left for the next sweep", key=doomed, error=str(error))
            continue
        await store.forget_doomed_object(doomed)
    return freed_bytes
