"""Writes that are on disk when they return, and locks that die with their process."""

import fcntl
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from openrl.errors import Unavailable
from openrl.telemetry.logs import get_logger

_log = get_logger(__name__)


@contextmanager
def unavailable_if_it_fails(what: str) -> Generator[None, None, None]:
    """Turns an OSError (disk full, no permission) into Unavailable, without the name of a file."""
    try:
        yield
    except OSError as error:
        _log.warning("disk failed", action=what, error=str(error))
        raise Unavailable(f"cannot {what}: {error.strerror or type(error).__name__}") from error


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`, however many calls the kernel wants."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_file(path: Path, data: bytes) -> None:
    """Create a file and flush it to disk; its directory is the caller's to flush."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def flush_directories(paths: Sequence[Path]) -> None:
    """Make the names in these directories durable."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def try_lock(fd: int) -> bool:
    """Take the lock of an open file unless somebody holds it; released when the file is closed."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
