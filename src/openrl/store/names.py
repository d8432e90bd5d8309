"""Checks names that callers choose and turns them into file names that stay where they belong."""

import hashlib
from urllib.parse import quote

from openrl.errors import InvalidRequest

MAX_FILE_NAME = 200  # bytes; file systems allow 255
NUM_KEPT = 120  # characters of a longer name that stay readable


def check_path(path: str) -> str:
    """The path, if it is relative and names something inside; raises InvalidRequest."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in path or not path.isprintable():
        raise InvalidRequest(f"{path!r} is not a name: it needs non-empty parts between '/', none of them '.' or '..'")
    return path


def file_name(key: str) -> str:
    """One file name for a whole key, different for different keys; raises InvalidRequest."""
    escaped = quote(check_path(key), safe="")
    if len(escaped) <= MAX_FILE_NAME:
        return escaped
    # '+' never appears in an escaped name, so a shortened one cannot be somebody's whole key.
    return f"{escaped[:NUM_KEPT]}+{hashlib.sha256(key.encode()).hexdigest()}"


def is_shortened(name: str) -> bool:
    """Whether a file name does not tell its whole key."""
    return "+" in name
