"""The blob store in a local directory, shared by the processes of one machine."""

from collections.abc import Sequence
from pathlib import Path

from openrl.store.base import PacksInUse
from openrl.store.disk import unavailable_if_it_fails
from openrl.store.objects import ObjectDirectory
from openrl.store.packs import PayloadPacks

PACK_BYTES = 64 * 2**20
GRACE_S = 300.0


class DirectoryBlobs:
    """`Blobs` under `root`: payload packs in packs/, objects in objects/, drafts in tmp/.

    `pack_bytes`: a pack is closed when it reaches this size. `grace_s`: how long a pack is kept
    after its last write even if no row refers to it yet. Raises Unavailable if `root` cannot be used.
    """

    def __init__(self, root: Path, pack_bytes: int = PACK_BYTES, grace_s: float = GRACE_S) -> None:
        with unavailable_if_it_fails(f"use {root}"):
            for name in ("packs", "objects", "tmp"):
                (root / name).mkdir(parents=True, exist_ok=True)
            self._packs = PayloadPacks(root / "packs", pack_bytes, grace_s)
            self._objects = ObjectDirectory(root / "objects", root / "tmp")

    def close(self) -> None:
        self._packs.close()
        self._objects.close()

    def check(self) -> None:
        self._objects.check()

    def put_payloads(self, payloads: Sequence[bytes]) -> list[str]:
        return self._packs.put(payloads)

    def get_payload(self, ref: str) -> bytes:
        return self._packs.get(ref)

    def peek_payload(self, ref: str, max_bytes: int) -> bytes | None:
        return self._packs.peek(ref, max_bytes)

    def payload_size(self, ref: str) -> int:
        return self._packs.size_of(ref)

    def sweep_packs(self, in_use: PacksInUse) -> int:
        return self._packs.sweep(in_use)

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
