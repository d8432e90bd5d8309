"""The contract of payloads and files: bytes that rows refer to."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol


class Blobs(Protocol):
    """Bytes that are too large for rows. Thread-safe and synchronous: call from a thread.

    What cannot be done at the moment (disk full, store out of reach) raises Unavailable and leaves what was there.

    Two kinds: *payloads*, small and many, appended in groups to pack files and addressed by an
    opaque ref; *objects*, directories of files under a key ("checkpoints/<id>"), written whole or
    not at all.
    """

    def check(self) -> None:
        """Raises Unavailable where nothing can be written."""
        ...

    def close(self) -> None:
        """Let go of locks, files and threads; a process that just ends does the same."""
        ...

    def put_payloads(self, payloads: Sequence[bytes]) -> list[str]:
        """Append all with one flush to disk; returns their refs."""
        ...

    def get_payload(self, ref: str) -> bytes:
        """Raises NotFound when it was pruned."""
        ...

    def peek_payload(self, ref: str, max_bytes: int) -> bytes | None:
        """As `get_payload`, but None where that would wait for a disk or network, or is longer than `max_bytes`.

        May be called on an event loop.
        """
        ...

    def payload_size(self, ref: str) -> int:
        """Bytes of a payload, told by its ref alone; raises NotFound for what is no ref."""
        ...

    def sweep_packs(self, in_use: "PacksInUse") -> int:
        """Delete every closed pack that is not in use; returns freed bytes.

        A pack that was just written is kept: the row that refers to it may not be committed yet. Now and then it also
        deletes what writes of objects left behind that were cut short long ago.
        """
        ...

    def put_object(self, key: str, files: dict[str, bytes]) -> int:
        """Write a directory of files atomically and durably; returns its size. Replaces an old one."""
        ...

    def get_object(self, key: str) -> dict[str, bytes]:
        """All files of a directory by relative name; raises NotFound."""
        ...

    def list_object(self, key: str) -> dict[str, int]:
        """Relative names and sizes; raises NotFound."""
        ...

    def list_objects(self, prefix: str) -> dict[str, float]:
        """Keys that start with a prefix, and when each was last written, in seconds since the epoch.

        A key too long to be a file name as it is (see names.py) is left out.
        """
        ...

    def open_path(self, key: str, name: str) -> str:
        """A local path of one file, for libraries that map files into memory; raises NotFound."""
        ...

    def delete_object(self, key: str) -> int:
        """Remove a directory of files; returns freed bytes, 0 if it was not there."""
        ...


class PacksInUse(Protocol):
    """Tells which of these packs any row still refers to; asked for some hundred at a time."""

    def __call__(self, packs: Sequence[str], /) -> AbstractSet[str]: ...
