"""Fetches what stands behind links that need no key."""

import hashlib
import urllib.error
import urllib.request


def fetch(url: str) -> bytes:
    """What stands there for everybody."""
    with urllib.request.urlopen(url, timeout=30) as response:
        return response.read()


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def digests(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
