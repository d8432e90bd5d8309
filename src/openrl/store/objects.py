"""Directories of files under keys, written whole or not at all.

Every write of a key makes a new version, <objects>/<escaped key>/<number>-<unique>/, put in place by one
rename; the version with the largest name counts. Older ones are removed after that. Versions are
prepared in <tmp>/<unique>/, a directory per process whose lock tells the others that it lives.
"""

import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

from openrl.errors import NotFound
from openrl.store.disk import flush_directories, try_lock, unavailable_if_it_fails, write_file
from openrl.store.names import check_path, file_name, is_shortened

T = TypeVar("T")
NUM_TRIES = 8  # each try loses only to another write or deletion of the same key in that very moment


class ObjectDirectory:
    """See `Blobs` for the contract."""

    def __init__(self, objects: Path, tmp: Path) -> None:
        self._objects = objects
        self._lock_fd: int | None  # None once closed: the number may be another file's by then
        self._workplace, self._lock_fd = _claim_workplace(tmp)

    def put(self, key: str, files: dict[str, bytes]) -> int:
        """Write a new version; returns its size. Raises Unavailable if the disk refuses."""
        home = self._objects / file_name(key)
        for name in files:
            check_path(name)
        draft = self._workplace / uuid.uuid4().hex
        with unavailable_if_it_fails(f"write {key!r}"):
            try:
                _write_files(draft, files)
                version = self._install(draft, home)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        self._remove_older(home, version)
        return sum(len(data) for data in files.values())

    def get(self, key: str) -> dict[str, bytes]:
        """All files by relative name."""
        return self._with_newest(key, lambda version: {n: (version / n).read_bytes() for n in _names(version)})

    def sizes(self, key: str) -> dict[str, int]:
        """Relative names and sizes."""
        return self._with_newest(key, lambda version: {n: (version / n).stat().st_size for n in _names(version)})

    def keys(self, prefix: str) -> dict[str, float]:
        """Keys that start with `prefix`, and when each was last written."""
        start = quote(prefix, safe="")
        found: dict[str, float] = {}
        with unavailable_if_it_fails(f"list {prefix!r}"), os.scandir(self._objects) as homes:
            for home in homes:
                if home.name.startswith(start) and not is_shortened(home.name):
                    with suppress(FileNotFoundError):  # deleted at this moment
                        found[unquote(home.name)] = home.stat().st_mtime
        return found

    def path_of(self, key: str, name: str) -> str:
        """The local path of one file."""
        path = self._with_newest(key, lambda version: version / check_path(name))
        if not path.is_file():
            raise NotFound(f"file {name!r} of {key!r} does not exist")
        return str(path)

    def delete(self, key: str) -> int:
        """Remove a key with all its versions; returns freed bytes."""
        home = self._objects / file_name(key)
        grave = self._workplace / uuid.uuid4().hex
        with unavailable_if_it_fails(f"delete {key!r}"):
            try:
                home.rename(grave)
            except FileNotFoundError:
                return 0
            flush_directories([self._objects])
            freed = sum(path.stat().st_size for path in grave.rglob("*") if path.is_file())
            shutil.rmtree(grave)
        return freed

    def check(self) -> None:
        """Raises Unavailable where nothing can be written."""
        probe = self._workplace / uuid.uuid4().hex
        with unavailable_if_it_fails(f"write to {self._objects.parent}"):
            try:
                write_file(probe, b"\0")
            finally:
                probe.unlink(missing_ok=True)

    def close(self) -> None:
        """Give the workplace back; no writes may follow."""
        if self._lock_fd is not None:
            shutil.rmtree(self._workplace, ignore_errors=True)
            os.close(self._lock_fd)
            self._lock_fd = None

    def _install(self, draft: Path, home: Path) -> str:
        for _ in range(NUM_TRIES):
            home.mkdir(exist_ok=True)
            number = max((_number(version) for version in _versions(home)), default=0) + 1
            version = f"{number:012d}-{draft.name}"
            try:
                draft.rename(home / version)
                flush_directories([home, self._objects])
            except FileNotFoundError:  # a deletion took the home away
                if not draft.exists():
                    return version  # it was in place, and was deleted after that
                continue
            return version
        raise FileNotFoundError(f"{home} keeps being deleted")

    def _remove_older(self, home: Path, version: str) -> None:
        for old in _versions(home):
            if old < version:
                with suppress(FileNotFoundError):
                    grave = self._workplace / uuid.uuid4().hex
                    (home / old).rename(grave)
                    shutil.rmtree(grave, ignore_errors=True)

    def _with_newest(self, key: str, read: Callable[[Path], T]) -> T:
        """Read the newest version, again if it is replaced meanwhile; raises NotFound."""
        home = self._objects / file_name(key)
        for _ in range(NUM_TRIES):
            versions = _versions(home)
            if not versions:
                break
            newest = home / max(versions)
            with suppress(FileNotFoundError):
                found = read(newest)
                if newest.exists():  # whole: it was there before and after
                    return found
        raise NotFound.of("object", key)


def _claim_workplace(tmp: Path) -> tuple[Path, int]:
    """A directory of our own, after removing those whose processes are gone."""
    gate = os.open(tmp / "gate", os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        flock(gate, LOCK_EX)  # one process at a time: a new workplace is never met before it is locked
        for path in tmp.iterdir():
            if path.is_dir():
                _remove_if_stale(path)
        workplace = tmp / uuid.uuid4().hex
        workplace.mkdir()
        fd = os.open(workplace, os.O_RDONLY | os.O_DIRECTORY)
        try_lock(fd)
        return workplace, fd
    finally:
        os.close(gate)


def _remove_if_stale(workplace: Path) -> None:
    with suppress(FileNotFoundError):  # its process gives it back at this moment
        fd = os.open(workplace, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if try_lock(fd):
                shutil.rmtree(workplace, ignore_errors=True)
        finally:
            os.close(fd)


def _write_files(draft: Path, files: dict[str, bytes]) -> None:
    draft.mkdir()
    for name, data in files.items():
        path = draft / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, data)
    flush_directories([draft, *(path for path in draft.rglob("*") if path.is_dir())])


def _versions(home: Path) -> list[str]:
    try:
        return [path.name for path in home.iterdir()]
    except FileNotFoundError:
        return []


def _number(version: str) -> int:
    return int(version.split("-", 1)[0])


def _names(version: Path) -> list[str]:
    version.stat()  # raises when the version is gone, where rglob would quietly find nothing
    return sorted(str(path.relative_to(version)) for path in version.rglob("*") if path.is_file())
