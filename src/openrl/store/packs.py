"""Append-only files of payloads, shared by several processes that each append to their own."""

import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from openrl.errors import NotFound
from openrl.store.base import PacksInUse
from openrl.store.disk import flush_directories, try_lock, unavailable_if_it_fails, write_all
from openrl.store.patient_clock import PatientClock
from openrl.store.refs import make_refs, parse_ref

SUFFIX = ".pack"
NEW_SUFFIX = ".new"  # a pack that is not locked yet: sweeping must not meet it under its final name
_ASKED_AT_ONCE = 1000


@dataclass(slots=True)
class OpenPack:
    """The pack that this process appends to; its lock is held while it is open."""

    name: str
    fd: int
    size: int
    written_at: float


class PayloadPacks:
    """See `Blobs` for the contract. A ref is "<pack>:<offset>:<length>"."""

    def __init__(self, root: Path, pack_bytes: int, grace_s: float, clock: Callable[[], float] | None = None) -> None:
        self._root = root
        self._pack_bytes = pack_bytes
        self._grace_s = grace_s
        # A wall clock that jumps ahead would make what was written a moment ago look old.
        self._clock = clock or PatientClock(time.time, time.monotonic)
        self._lock = threading.Lock()
        self._open: OpenPack | None = None

    def put(self, payloads: Sequence[bytes]) -> list[str]:
        """Append all with one flush; raises Unavailable if the disk refuses."""
        if not payloads:
            return []
        with self._lock, unavailable_if_it_fails("write payloads"):
            pack = self._open or self._create()
            try:
                write_all(pack.fd, b"".join(payloads))
                os.fsync(pack.fd)
            except OSError:
                # How much was written is not known: nothing may follow it.
                self._close()
                raise
            refs = make_refs(pack.name, pack.size, payloads)
            pack.size += sum(len(payload) for payload in payloads)
            pack.written_at = self._clock()
            if pack.size >= self._pack_bytes:
                self._close()
            return refs

    def get(self, ref: str) -> bytes:
        """The payload under a ref; raises NotFound when it was pruned or was never given out."""
        name, offset, length = parse_ref(ref)
        fd = self._open_for_reading(ref, name)
        try:
            # Bounds first: a wrong length must not become an allocation of that size.
            size = os.fstat(fd).st_size
            if offset + length > size:
                raise NotFound(f"payload {ref!r} ends past its pack of {size} bytes")
            return _read(fd, offset, length)
        finally:
            os.close(fd)

    def peek(self, ref: str, max_bytes: int) -> bytes | None:
        """As `get`, if it is no longer than `max_bytes` and the kernel holds it in memory; else None."""
        name, offset, length = parse_ref(ref)
        if length > max_bytes:
            return None
        fd = self._open_for_reading(ref, name)
        try:
            return _read_cached(fd, offset, length)
        finally:
            os.close(fd)

    def size_of(self, ref: str) -> int:
        """Length of the payload under a ref."""
        return parse_ref(ref)[2]

    def sweep(self, in_use: PacksInUse) -> int:
        """Delete packs that nobody appends to and no row refers to; returns freed bytes.

        A pack is left alone for `grace_s` after its last write: a result is in its pack a moment
        before the row that refers to it is committed.
        """
        with self._lock:
            if self._open is not None and self._is_old(self._open.written_at):
                self._close()
        freed = 0
        old = [path for path in self._root.iterdir() if self._can_go(path)]
        for start in range(0, len(old), _ASKED_AT_ONCE):
            some = old[start : start + _ASKED_AT_ONCE]
            live = in_use([path.stem for path in some if path.suffix == SUFFIX])
            for path in some:
                if path.suffix != SUFFIX or path.stem not in live:
                    freed += self._delete(path)
        return freed

    def close(self) -> None:
        """Close the pack that is appended to; the next `put` opens another."""
        with self._lock:
            self._close()

    def _open_for_reading(self, ref: str, name: str) -> int:
        try:
            return os.open(f"{self._root}/{name}{SUFFIX}", os.O_RDONLY)
        except FileNotFoundError:
            raise NotFound.of("payload", ref) from None

    def _create(self) -> OpenPack:
        name = uuid.uuid4().hex
        new = self._root / f"{name}{NEW_SUFFIX}"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        try:
            try_lock(fd)
            new.rename(self._root / f"{name}{SUFFIX}")
            flush_directories([self._root])
        except OSError:
            os.close(fd)
            raise
        self._open = OpenPack(name, fd, 0, self._clock())
        return self._open

    def _close(self) -> None:
        if self._open is not None:
            os.close(self._open.fd)
            self._open = None

    def _is_old(self, written_at: float) -> bool:
        return self._clock() - written_at >= self._grace_s

    def _can_go(self, path: Path) -> bool:
        try:
            return self._is_old(path.stat().st_mtime)
        except FileNotFoundError:  # another process sweeps too
            return False

    def _delete(self, path: Path) -> int:
        """Unless somebody appends to it, or did since it was looked at."""
        try:
            fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return 0
        try:
            if not try_lock(fd):
                return 0
            status = os.fstat(fd)
            if not self._is_old(status.st_mtime):
                return 0
            path.unlink(missing_ok=True)
            return status.st_size
        finally:
            os.close(fd)


def _read_cached(fd: int, offset: int, length: int) -> bytes | None:
    """None where bytes would have to be fetched from the disk, or where the kernel does not tell."""
    if sys.platform != "linux":
        return None
    data = bytearray(length)
    try:
        num_read = os.preadv(fd, [data], offset, os.RWF_NOWAIT)
    except OSError:  # not in memory (EAGAIN), or a file system that cannot say (EOPNOTSUPP)
        return None
    return bytes(data) if num_read == length else None


def _read(fd: int, offset: int, length: int) -> bytes:
    parts: list[bytes] = []
    while length:
        part = os.pread(fd, length, offset)
        assert part, "the bounds were checked and packs never shrink"
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return b"".join(parts)
