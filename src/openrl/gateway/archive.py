"""Streams files as a tar archive whose size is known beforehand; nothing is held in memory."""

import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

_READ_BYTES = 2**20
_BLOCK = 512


def tar_size(sizes: Mapping[str, int]) -> int:
    """Bytes of the archive of files of these sizes."""
    return sum(_BLOCK + size + -size % _BLOCK for size in sizes.values()) + 2 * _BLOCK


def stream_tar(paths: Mapping[str, Path | None], sizes: Mapping[str, int], time: int) -> Iterator[bytes]:
    """The archive in pieces; `paths` gives the file behind each name, None for an empty marker."""
    for name, size in sizes.items():
        yield _header(name, size, time)
        path = paths[name]
        if path is not None:
            yield from _pieces(path)
        yield bytes(-size % _BLOCK)
    yield bytes(2 * _BLOCK)


def _header(name: str, size: int, time: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = size, time, 0o644
    return entry.tobuf(tarfile.USTAR_FORMAT)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            yield piece
