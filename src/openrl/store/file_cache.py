"""Local copies of files that never change, shared by the processes of a machine; the least recently used go first."""

import os
import time
import uuid
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_SH, flock
from pathlib import Path
from typing import BinaryIO

from openrl.store.disk import unavailable_if_it_fails

IN_USE_S = 600.0
"""A path that was given out exists for so long at least, to be opened; such files may exceed the cache's bound."""
_NUM_LOCKS = 64
_GATE = "gate"


class FileCache:
    """Copies in <root>/files/<version>/<name>, put there whole by a rename; a copy's time is that of its last use."""

    def __init__(self, root: Path, max_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self._files, self._parts, self._locks = root / "files", root / "parts", root / "locks"
        self._max_bytes = max_bytes
        self._clock = clock
        with unavailable_if_it_fails(f"use {root}"):
            for directory in (self._files, self._parts, self._locks):
                directory.mkdir(parents=True, exist_ok=True)

    def path_of(self, version: str, name: str, size: int, fetch: Callable[[BinaryIO], None]) -> str:
        """The copy's path; `fetch` writes the file where there is none, once for all who ask at the same time."""
        path = self._files / version / name
        with unavailable_if_it_fails(f"keep a copy of {name!r}"):
            if self._use(path, size):
                return str(path)
            with self._locked(str(zlib.crc32(str(path).encode()) % _NUM_LOCKS), LOCK_EX):
                if self._use(path, size):
                    return str(path)
                self._fetch(path, fetch)
            self._evict()
        return str(path)

    def _use(self, path: Path, size: int) -> bool:
        with self._locked(_GATE, LOCK_SH), suppress(FileNotFoundError):
            if path.stat().st_size == size:
                self._touch(path)
                return True
        return False

    def _fetch(self, path: Path, fetch: Callable[[BinaryIO], None]) -> None:
        part = self._parts / uuid.uuid4().hex
        try:
            with part.open("wb") as file:
                fetch(file)
                file.flush()
                os.fsync(file.fileno())  # a name must not outlive its bytes in a crash of the machine
            self._touch(part)
            with self._locked(_GATE, LOCK_SH):
                path.parent.mkdir(parents=True, exist_ok=True)
                part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _touch(self, path: Path) -> None:
        os.utime(path, (self._clock(), self._clock()))

    def _evict(self) -> None:
        """Delete what was not used for longest until the rest fits, and what dead processes left half done."""
        with self._locked(_GATE, LOCK_EX):
            used: list[tuple[float, int, Path]] = []
            for path in (*self._files.rglob("*"), *self._parts.iterdir()):
                with suppress(FileNotFoundError):  # a part that has just been finished
                    if path.is_file():
                        status = path.stat()
                        used.append((status.st_mtime, status.st_size, path))
            num_bytes = sum(size for _, size, _ in used)
            for used_at, size, path in sorted(used):
                if num_bytes <= self._max_bytes or self._clock() - used_at < IN_USE_S:
                    return
                path.unlink(missing_ok=True)
                num_bytes -= size
                self._prune(path.parent)

    def _prune(self, directory: Path) -> None:
        """Remove directories that an eviction has left empty."""
        with suppress(OSError):
            while self._files in directory.parents:
                directory.rmdir()
                directory = directory.parent

    @contextmanager
    def _locked(self, name: str, how: int) -> Generator[None]:
        fd = os.open(self._locks / name, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            flock(fd, how)
            yield
        finally:
            os.close(fd)
