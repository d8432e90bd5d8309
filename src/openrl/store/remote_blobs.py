"""The blob store in an object store (S3, GCS, Azure), shared by processes of any machine."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from openrl.store.base import PacksInUse
from openrl.store.file_cache import FileCache
from openrl.store.pack_cache import PackCache
from openrl.store.remote import RemoteStore
from openrl.store.remote_objects import RemoteObjects
from openrl.store.remote_packs import RemotePacks

GRACE_S = 3600.0
"""Packs have no owner whose lock would keep them: a worker may hold results for a while that it cannot report."""
LITTER_GRACE_S = 86400.0
LITTER_EVERY_S = 3600.0
RECENT_BYTES = 64 * 2**20


class RemoteBlobs:
    """`Blobs` over a RemoteStore: payloads under packs/, objects under names/ and files/.

    `cache_dir`: where files are copied to that are asked for by path, up to `cache_bytes`. `grace_s`: how long a pack
    is kept that no row refers to; `litter_grace_s`: how long a write of an object may take. Both are told by the
    store's own clock.
    """

    def __init__(
        self,
        store: RemoteStore,
        cache_dir: Path,
        cache_bytes: int,
        grace_s: float = GRACE_S,
        litter_grace_s: float = LITTER_GRACE_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._packs = RemotePacks(store, PackCache(RECENT_BYTES), grace_s)
        self._objects = RemoteObjects(store, FileCache(cache_dir, cache_bytes), litter_grace_s)
        self._litter_every_s = min(LITTER_EVERY_S, litter_grace_s)
        self._monotonic = monotonic
        self._next_litter_sweep = 0.0

    def check(self) -> None:
        self._store.now()

    def close(self) -> None:
        self._objects.close()

    def put_payloads(self, payloads: Sequence[bytes]) -> list[str]:
        return self._packs.put(payloads)

    def get_payload(self, ref: str) -> bytes:
        return self._packs.get(ref)

    def peek_payload(self, ref: str, max_bytes: int) -> bytes | None:
        return self._packs.peek(ref, max_bytes)

    def payload_size(self, ref: str) -> int:
        return self._packs.size_of(ref)

    def sweep_packs(self, in_use: PacksInUse) -> int:
        freed = self._packs.sweep(in_use)
        if self._monotonic() >= self._next_litter_sweep:
            freed += self._objects.sweep()
            self._next_litter_sweep = self._monotonic() + self._litter_every_s
        return freed

    def put_object(self, key: str, files: dict[str, bytes]) -> int:
        return self._objects.put(key, files)

    def get_object(self, key: str) -> dict[str, bytes]:
        return self._objects.get(key)

    def list_object(self, key: str) -> dict[str, int]:
        return self._objects.sizes(key)

    def list_objects(self, prefix: str) -> dict[str, float]:
        return self._objects.keys(prefix)

    def open_path(self, key: str, name: str) -> str:
        return self._objects.path_of(key, name)

    def delete_object(self, key: str) -> int:
        return self._objects.delete(key)
