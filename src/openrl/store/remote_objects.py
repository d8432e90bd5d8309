"""Directories of files under keys in an object store, written whole or not at all.

The files of a write are objects files/<place>/<version>/<escaped name>; then names/<place> is written, the pointer,
which says which version counts and what it consists of: one object, so it changes at once. <place> is the escaped
key in at most two parts, the first of which can be listed by. A write that is cut short leaves files that nothing
names; a sweep removes them.
"""

import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import BinaryIO, TypeVar
from urllib.parse import unquote

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from openrl.errors import NotFound, Unavailable
from openrl.store.file_cache import FileCache
from openrl.store.names import check_path, file_name, is_shortened
from openrl.store.remote import LISTED_AT_ONCE, NUM_PARTS, PART_BYTES, Entry, RemoteStore

T = TypeVar("T")
_FILES = "files"
_NAMES = "names"
_log = structlog.get_logger(__name__)


class Pointer(BaseModel):
    """What names/<place> says."""

    model_config = ConfigDict(frozen=True)

    version: str
    files: dict[str, int]
    """Sizes by name."""


class RemoteObjects:
    """See `Blobs` for the contract. `grace_s`: longer than any write of an object takes."""

    def __init__(self, store: RemoteStore, cache: FileCache, grace_s: float) -> None:
        self._store = store
        self._cache = cache
        self._grace_s = grace_s
        self._streams = ThreadPoolExecutor(NUM_PARTS, thread_name_prefix="object-store")

    def close(self) -> None:
        """End the threads that read and write."""
        self._streams.shutdown()

    def put(self, key: str, files: dict[str, bytes]) -> int:
        """Write a new version; returns its size."""
        place = _place(key)
        for name in files:
            check_path(name)
        old = self._find(place)
        pointer = Pointer(version=uuid.uuid4().hex, files={name: len(data) for name, data in files.items()})

        def write(name: str) -> None:
            self._store.put(_file_path(place, pointer.version, name), files[name])

        list(self._streams.map(write, files))
        self._store.put(f"{_NAMES}/{place}", pointer.model_dump_json().encode())
        if old is not None:
            try:
                self._delete_files(place, old)
            except Unavailable as error:  # the write has succeeded
                _log.warning("files left for the next sweep", key=key, error=str(error))
        return sum(pointer.files.values())

    def get(self, key: str) -> dict[str, bytes]:
        """All files by relative name."""
        place = _place(key)
        return self._with_newest(key, lambda pointer: self._read_all(place, pointer))

    def sizes(self, key: str) -> dict[str, int]:
        """Relative names and sizes."""
        return dict(sorted(self._newest(key).files.items()))

    def keys(self, prefix: str) -> dict[str, float]:
        """Keys that start with `prefix`, and when each was last written."""
        first, slash, _ = prefix.partition("/")
        under = f"{_NAMES}/{file_name(first)}" if slash else _NAMES
        found: dict[str, float] = {}
        for entry in self._store.list(under):
            place = entry.path.removeprefix(f"{_NAMES}/")
            key = unquote(place)
            if key.startswith(prefix) and not is_shortened(place):
                found[key] = entry.written_at
        return found

    def path_of(self, key: str, name: str) -> str:
        """The local path of a copy of one file."""
        place = _place(key)
        check_path(name)

        def fetch(pointer: Pointer) -> str | None:
            size = pointer.files.get(name)
            if size is None:
                return None
            path = _file_path(place, pointer.version, name)
            return self._cache.path_of(pointer.version, name, size, lambda file: self._download(path, size, file))

        found = self._with_newest(key, fetch)
        if found is None:
            raise NotFound(f"file {name!r} of {key!r} does not exist")
        return found

    def delete(self, key: str) -> int:
        """Remove a key; returns freed bytes."""
        place = _place(key)
        pointer = self._find(place)
        if pointer is None:
            return 0
        self._store.delete([f"{_NAMES}/{place}"])
        self._delete_files(place, pointer)
        return sum(pointer.files.values())

    def sweep(self) -> int:
        """Delete versions that no pointer names and that are older than the grace period; returns freed bytes.

        A place with one version and a pointer needs no look at the pointer: it names that one.
        """
        old_before = self._store.now() - self._grace_s
        pointed = {entry.path.removeprefix(f"{_NAMES}/") for entry in self._store.list(_NAMES)}
        freed = 0
        for place, entries in groupby(self._store.list(_FILES), key=_place_of):
            versions: dict[str, list[Entry]] = {}
            for entry in entries:
                versions.setdefault(_version_of(entry), []).append(entry)
            if len(versions) > 1 or place not in pointed:
                freed += self._sweep_place(place, versions, old_before)
        return freed

    def _sweep_place(self, place: str, versions: dict[str, list[Entry]], old_before: float) -> int:
        pointer = self._find(place)
        dead = [
            entry
            for version, entries in versions.items()
            if pointer is None or version != pointer.version
            if max(entry.written_at for entry in entries) <= old_before
            for entry in entries
        ]
        for start in range(0, len(dead), LISTED_AT_ONCE):
            self._store.delete([entry.path for entry in dead[start : start + LISTED_AT_ONCE]])
        return sum(entry.size for entry in dead)

    def _find(self, place: str) -> Pointer | None:
        path = f"{_NAMES}/{place}"
        try:
            return Pointer.model_validate_json(self._store.get(path))
        except NotFound:
            return None
        except ValidationError:
            raise Unavailable(f"{path} in the object store is damaged") from None

    def _newest(self, key: str) -> Pointer:
        pointer = self._find(_place(key))
        if pointer is None:
            raise NotFound.of("object", key)
        return pointer

    def _with_newest(self, key: str, read: Callable[[Pointer], T]) -> T:
        """Read the newest version, again if it is replaced meanwhile; raises NotFound."""
        pointer = self._newest(key)
        while True:
            try:
                return read(pointer)
            except NotFound:
                newer = self._newest(key)
            if newer.version == pointer.version:
                raise Unavailable(f"a file of {key!r} is missing from the object store")
            pointer = newer

    def _read_all(self, place: str, pointer: Pointer) -> dict[str, bytes]:
        """All parts of all files, several at a time."""
        parts = [(name, part) for name, size in sorted(pointer.files.items()) for part in _parts(size)]

        def read(each: tuple[str, tuple[int, int]]) -> bytes:
            name, (start, size) = each
            return self._read_part(_file_path(place, pointer.version, name), start, size)

        found: dict[str, list[bytes]] = {name: [] for name in sorted(pointer.files)}
        for (name, _), data in zip(parts, self._streams.map(read, parts), strict=True):
            found[name].append(data)
        return {name: b"".join(found.pop(name)) for name in list(found)}

    def _download(self, path: str, size: int, file: BinaryIO) -> None:
        for start, num_bytes in _parts(size):
            file.write(self._read_part(path, start, num_bytes))

    def _read_part(self, path: str, start: int, num_bytes: int) -> bytes:
        data = self._store.get_range(path, start, num_bytes)
        if len(data) != num_bytes:
            raise Unavailable(f"{path} in the object store is shorter than it was when it was written")
        return data

    def _delete_files(self, place: str, pointer: Pointer) -> None:
        self._store.delete([_file_path(place, pointer.version, name) for name in pointer.files])


def _place(key: str) -> str:
    first, slash, rest = check_path(key).partition("/")
    return f"{file_name(first)}/{file_name(rest)}" if slash else file_name(first)


def _file_path(place: str, version: str, name: str) -> str:
    return f"{_FILES}/{place}/{version}/{file_name(name)}"


def _place_of(entry: Entry) -> str:
    return entry.path.removeprefix(f"{_FILES}/").rsplit("/", 2)[0]


def _version_of(entry: Entry) -> str:
    return entry.path.rsplit("/", 2)[1]


def _parts(size: int) -> Iterable[tuple[int, int]]:
    return [(start, min(PART_BYTES, size - start)) for start in range(0, size, PART_BYTES)]
