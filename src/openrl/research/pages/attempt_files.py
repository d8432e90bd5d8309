"""Reads what an attempt left in its directory, within bounds: its programs are free to write anything there."""

import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

LOG_FILE = "log.txt"
PATCH_FILE = "change.patch"
"""What an agent changed in the study's files, as a unified diff."""
LOG_BYTES = 64 * 1024
PATCH_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A part of a file."""

    text: str
    file_bytes: int
    is_cut: bool


def attempt_files(study_directory: Path, number: int, log_bytes: int = LOG_BYTES) -> dict[str, object]:
    """The end of its log and the beginning of its patch; None where there is none."""
    home = study_directory / "attempts" / f"{number:04d}"
    log = read_excerpt(home / LOG_FILE, study_directory, log_bytes, from_end=True)
    patch = read_excerpt(home / PATCH_FILE, study_directory, PATCH_BYTES, from_end=False)
    return {"attempt": number, "log": log and asdict(log), "patch": patch and asdict(patch)}


def read_excerpt(path: Path, root: Path, max_bytes: int, *, from_end: bool) -> Excerpt | None:
    """At most so many bytes of a plain file that is really below `root`, in whole lines where it is cut."""
    if not path.parent.resolve().is_relative_to(root.resolve()):
        return None
    try:
        # Not through a link, and not waiting for the writer of a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        size = status.st_size
        file.seek(max(0, size - max_bytes) if from_end else 0)
        content = file.read(max_bytes)
    is_cut = size > max_bytes
    return Excerpt(_whole_lines(content, from_end=from_end) if is_cut else _text(content), size, is_cut)


def _whole_lines(content: bytes, *, from_end: bool) -> str:
    if from_end:
        return _text(content.partition(b"\n")[2] or content)
    return _text(content.rpartition(b"\n")[0] or content)


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")
