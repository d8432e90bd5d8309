"""Payload packs in an object store: what is put together is one object, read by ranges."""

import uuid
from collections.abc import Iterator, Sequence
from itertools import islice

from openrl.errors import NotFound
from openrl.store.base import PacksInUse
from openrl.store.pack_cache import PackCache
from openrl.store.refs import make_refs, parse_ref
from openrl.store.remote import LISTED_AT_ONCE, PART_BYTES, Entry, RemoteStore

READ_AHEAD = 2**18
"""Payloads that were put together are read together: so much is fetched at least."""
_PACKS = "packs"


class RemotePacks:
    """See `Blobs` for the contract. Packs are never appended to: other processes read and sweep them without a lock."""

    def __init__(self, store: RemoteStore, cache: PackCache, grace_s: float) -> None:
        self._store = store
        self._cache = cache
        self._grace_s = grace_s

    def put(self, payloads: Sequence[bytes]) -> list[str]:
        """One object for all of them."""
        if not payloads:
            return []
        pack, data = uuid.uuid4().hex, b"".join(payloads)
        self._store.put(f"{_PACKS}/{pack}", data)
        self._cache.keep(pack, 0, data)
        return make_refs(pack, 0, payloads)

    def get(self, ref: str) -> bytes:
        """The payload under a ref; raises NotFound when it was pruned or was never given out."""
        pack, offset, length = parse_ref(ref)
        found = self._cache.find(pack, offset, length)
        if found is not None:
            return found
        data = self._read(ref, pack, offset, max(length, READ_AHEAD))
        if len(data) < length:
            raise NotFound(f"payload {ref!r} ends past its pack")
        self._cache.keep(pack, offset, data)
        return data[:length]

    def peek(self, ref: str, max_bytes: int) -> bytes | None:
        """As `get`, if it is no longer than `max_bytes` and in memory; else None."""
        pack, offset, length = parse_ref(ref)
        return None if length > max_bytes else self._cache.find(pack, offset, length)

    def size_of(self, ref: str) -> int:
        """Length of the payload under a ref."""
        return parse_ref(ref)[2]

    def sweep(self, in_use: PacksInUse) -> int:
        """Delete packs that are older than the grace period, on the store's clock, and that no row refers to."""
        old_before = self._store.now() - self._grace_s
        old = (entry for entry in self._store.list(_PACKS) if entry.written_at <= old_before)
        return sum(self._sweep_some(some, in_use) for some in _in_groups(old))

    def _sweep_some(self, entries: Sequence[Entry], in_use: PacksInUse) -> int:
        sizes = {entry.path.removeprefix(f"{_PACKS}/"): entry.size for entry in entries}
        dead = sorted(set(sizes) - in_use(list(sizes)))
        self._cache.forget(dead)
        self._store.delete([f"{_PACKS}/{pack}" for pack in dead])
        return sum(sizes[pack] for pack in dead)

    def _read(self, ref: str, pack: str, offset: int, num_bytes: int) -> bytes:
        """As far as the pack goes; a wrong length must not become an allocation of that size."""
        parts: list[bytes] = []
        try:
            for start in range(offset, offset + num_bytes, PART_BYTES):
                size = min(PART_BYTES, offset + num_bytes - start)
                parts.append(self._store.get_range(f"{_PACKS}/{pack}", start, size))
                if len(parts[-1]) < size:
                    break
        except NotFound:
            raise NotFound.of("payload", ref) from None
        return b"".join(parts)


def _in_groups(entries: Iterator[Entry]) -> Iterator[Sequence[Entry]]:
    while group := list(islice(entries, LISTED_AT_ONCE)):
        yield group
