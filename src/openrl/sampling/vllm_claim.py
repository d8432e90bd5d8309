"""Gives each vLLM server to one worker at a time: two would not know each other's load, fair shares and adapters.

Workers see each other by locked files in the directory that they share with the servers. The kernel drops the locks
of a process that was killed.
"""

import fcntl
import hashlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from openrl.errors import Unavailable
from openrl.telemetry.logs import get_logger

_OWNER_BYTES = 200
log = get_logger(__name__)


class ServerClaim:
    """Held from construction until `close` or the end of the process."""

    def __init__(self, urls: Sequence[str], directory: Path, owner: str) -> None:
        """`directory`: common to the workers and the servers; `owner`: what others are told, a worker's name.

        Raises Unavailable, naming the servers, where other workers have some of them.
        """
        self._descriptors: list[int] = []
        directory.mkdir(parents=True, exist_ok=True)
        taken: list[str] = []
        for url in dict.fromkeys(url.rstrip("/") for url in urls):
            holder = self._take(url, directory, owner)
            if holder is not None:
                taken.append(f"{url} (worker {holder!r})")
        if taken:
            self.close()
            remedy = "give this one servers of its own in sampling.vllm_urls, or stop the other"
            raise Unavailable(f"another worker uses these vLLM servers, which serve one: {', '.join(taken)}; {remedy}")

    def close(self) -> None:
        """Let others have the servers."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []

    def _take(self, url: str, directory: Path, owner: str) -> str | None:
        """Lock a server; returns who has it otherwise."""
        name = hashlib.blake2b(_identity(url, socket.gethostname()).encode(), digest_size=16).hexdigest()
        descriptor = os.open(directory / f".server-{name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        self._descriptors.append(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.pread(descriptor, _OWNER_BYTES, 0).decode(errors="replace") or "unknown"
        except OSError as error:
            log.warning("cannot see whether another worker uses a vLLM server", server=url, error=str(error))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, owner.encode()[:_OWNER_BYTES], 0)
        return None


def _identity(url: str, hostname: str) -> str:
    """What a server is to all workers: a loopback address is another server on every host and in every pod."""
    host = urlsplit(url).hostname or ""
    return f"{hostname} {url}" if host in ("localhost", "::1") or host.startswith("127.") else url
