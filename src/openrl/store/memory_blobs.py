"""Blobs in plain dicts: the slow, obvious twin of `DirectoryBlobs`, for tests."""

import threading
import time
from collections.abc import Sequence

from openrl.errors import InvalidRequest, NotFound
from openrl.store.base import PacksInUse
from openrl.store.names import check_path


class MemoryBlobs:
    """`Blobs` in memory; each `put_payloads` makes one pack, closed at once."""

    def __init__(self) -> None:
        self._packs: dict[str, list[bytes]] = {}
        self._num_packs = 0
        self._objects: dict[str, dict[str, bytes]] = {}
        self._written_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass

    def put_payloads(self, payloads: Sequence[bytes]) -> list[str]:
        with self._lock:
            self._num_packs += 1
            pack = f"pack{self._num_packs}"
            self._packs[pack] = list(payloads)
        return [f"{pack}:{index}" for index in range(len(payloads))]

    def get_payload(self, ref: str) -> bytes:
        pack, _, index = ref.partition(":")
        payloads = self._packs.get(pack, [])
        if not index.isdecimal() or int(index) >= len(payloads):
            raise NotFound.of("payload", ref)
        return payloads[int(index)]

    def peek_payload(self, ref: str, max_bytes: int) -> bytes | None:
        payload = self.get_payload(ref)
        return payload if len(payload) <= max_bytes else None

    def payload_size(self, ref: str) -> int:
        return len(self.get_payload(ref))

    def sweep_packs(self, in_use: PacksInUse) -> int:
        packs = list(self._packs)
        dead = set(packs) - in_use(packs)
        with self._lock:
            return sum(len(payload) for pack in dead for payload in self._packs.pop(pack))

    def put_object(self, key: str, files: dict[str, bytes]) -> int:
        for name in (key, *files):
            check_path(name)
        self._objects[key] = dict(files)
        self._written_at[key] = time.time()
        return sum(len(data) for data in files.values())

    def get_object(self, key: str) -> dict[str, bytes]:
        if check_path(key) not in self._objects:
            raise NotFound.of("object", key)
        return dict(self._objects[key])

    def list_object(self, key: str) -> dict[str, int]:
        return {name: len(data) for name, data in self.get_object(key).items()}

    def list_objects(self, prefix: str) -> dict[str, float]:
        return {key: self._written_at[key] for key in self._objects if key.startswith(prefix)}

    def open_path(self, key: str, name: str) -> str:
        raise InvalidRequest(f"file {name!r} of {key!r} is in memory and has no path")

    def delete_object(self, key: str) -> int:
        return sum(len(data) for data in self._objects.pop(check_path(key), {}).values())
