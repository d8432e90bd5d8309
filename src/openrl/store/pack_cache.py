"""Keeps lately used bytes of payload packs in memory."""

import threading
from collections import OrderedDict
from collections.abc import Iterable


class PackCache:
    """One stretch of each pack; the least recently used go first. Thread-safe, and never waits for disk or network."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._stretches: OrderedDict[str, tuple[int, bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, pack: str, start: int, data: bytes) -> None:
        """Remember the bytes of a pack from `start` on; what would take up most of the cache is not."""
        with self._lock:
            self._forget(pack)
            if 2 * len(data) > self._max_bytes:
                return
            self._stretches[pack] = start, data
            self._num_bytes += len(data)
            while self._num_bytes > self._max_bytes:
                self._forget(next(iter(self._stretches)))

    def find(self, pack: str, offset: int, length: int) -> bytes | None:
        """These bytes, if they are remembered."""
        with self._lock:
            start, data = self._stretches.get(pack, (0, b""))
            if not start <= offset <= offset + length <= start + len(data):
                return None
            self._stretches.move_to_end(pack)
        return data[offset - start : offset - start + length]

    def forget(self, packs: Iterable[str]) -> None:
        """These are no more."""
        with self._lock:
            for pack in packs:
                self._forget(pack)

    def _forget(self, pack: str) -> None:
        _, data = self._stretches.pop(pack, (0, b""))
        self._num_bytes -= len(data)
