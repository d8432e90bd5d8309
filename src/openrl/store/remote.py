"""A bucket of an object store: bytes under paths. Every failure is told without the secrets a raw one may show."""

import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError, GenericError
from obstore.store import ObjectStore, from_url

from openrl.errors import InvalidRequest, NotFound, Unavailable

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

PART_BYTES = 16 * 2**20  # what one request carries of a large object
NUM_PARTS = 4  # on their way at once
LISTED_AT_ONCE = 1000
_CLOCK = "clock"
_REFUSAL = re.compile(r"<Code>(\w{1,60})</Code>")
_STATUS = re.compile(r"status: (\d{3})")
_PAST_THE_END = "416"
_REASONS = (
    (re.compile("BadScheme"), "its endpoint is plain http, which store.s3_allow_http permits"),
    (re.compile("TimedOut|kind: Timeout"), "no answer in time"),
    (re.compile("dns error"), "its host is not known"),
    (re.compile("ConnectionRefused"), "it refuses connections"),
    (re.compile("[Cc]ertificate"), "its certificate is not trusted"),
    (re.compile("Connection(Reset|Aborted)|IncompleteMessage|BrokenPipe|UnexpectedEof"), "the connection was lost"),
)


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. The last attempt begins before `retry_s` are over: nothing takes longer than `retry_s` + `request_s`."""

    connect_s: float = 5.0
    request_s: float = 60.0
    retry_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Entry:
    """What a listing tells of one object."""

    path: str
    size: int
    written_at: float  # on the store's clock


class RemoteStore:
    """Objects under a URL such as "s3://bucket/prefix". Thread-safe.

    Raises Unavailable naming operation and path when the store does not do it in the time that `patience` gives it.
    """

    def __init__(self, url: str, patience: Patience, *, allow_http: bool = False, s3: "S3Config | None" = None) -> None:
        client: ClientConfig = {
            "allow_http": allow_http,
            "connect_timeout": timedelta(seconds=patience.connect_s),
            "timeout": timedelta(seconds=patience.request_s),
        }
        retries: RetryConfig = {
            "max_retries": 1000,  # time is the bound
            "retry_timeout": timedelta(seconds=patience.retry_s),
            "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2},
        }
        try:
            self._store: ObjectStore = from_url(url, config=s3, client_options=client, retry_config=retries)
        except (BaseError, ValueError) as error:
            raise InvalidRequest(f"store.blobs_url {url!r} cannot be used: {_reason(error)}", value=url) from None

    def put(self, path: str, data: bytes) -> None:
        """Write an object, whole or not at all."""
        with self._told("write", path):
            try:
                obstore.put(self._store, path, data, chunk_size=PART_BYTES, max_concurrency=NUM_PARTS)
            except FileNotFoundError as error:
                raise _unavailable("write", path, error) from None

    def get(self, path: str) -> bytes:
        """A whole object that is not large; raises NotFound."""
        with self._told("read", path):
            return bytes(obstore.get(self._store, path).bytes())

    def get_range(self, path: str, start: int, num_bytes: int) -> bytes:
        """Fewer bytes only where the object ends; raises NotFound. `num_bytes` is not 0."""
        with self._told("read", path):
            try:
                found = obstore.get(self._store, path, options={"range": (start, start + num_bytes)})
            except GenericError as error:
                if _PAST_THE_END in _STATUS.findall(str(error)):
                    return b""
                raise
            data = bytes(found.bytes())
            first, end = found.range
        if first != start or end - first != len(data) or len(data) != min(num_bytes, found.meta["size"] - start):
            raise Unavailable(f"the object store cannot read {path}: its answer has {len(data)} of {num_bytes} bytes")
        return data

    def list(self, prefix: str) -> Iterator[Entry]:
        """All objects below a path, in the order of the store."""
        with self._told("list", prefix):
            chunks = obstore.list(self._store, prefix, chunk_size=LISTED_AT_ONCE)
        while True:
            with self._told("list", prefix):
                chunk = next(chunks, None)
            if chunk is None:
                return
            for each in chunk:
                yield Entry(each["path"], each["size"], each["last_modified"].timestamp())

    def delete(self, paths: Sequence[str]) -> None:
        """Remove objects; those that are not there are no error."""
        if paths:
            with self._told("delete", paths[0] if len(paths) == 1 else f"{len(paths)} objects, {paths[0]} the first,"):
                obstore.delete(self._store, paths)

    def now(self) -> float:
        """The store's own time, as in `written_at`; writes an object, which also proves that writing works."""
        self.put(_CLOCK, b"")
        with self._told("read", _CLOCK):
            return obstore.head(self._store, _CLOCK)["last_modified"].timestamp()

    @contextmanager
    def _told(self, operation: str, path: str) -> Generator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if "NoSuchBucket" in _REFUSAL.findall(str(error)):
                raise _unavailable(operation, path, error) from None
            raise NotFound.of("object", path) from None
        except (BaseError, OSError, ValueError) as error:
            raise _unavailable(operation, path, error) from None


def _unavailable(operation: str, path: str, error: Exception) -> Unavailable:
    return Unavailable(f"the object store cannot {operation} {path}: {_reason(error)}")


def _reason(error: Exception) -> str:
    """What went wrong, from a list of harmless words."""
    text = str(error)
    told = [*_STATUS.findall(text)[-1:], *_REFUSAL.findall(text)[:1]]
    if told:
        return f"it answered {' '.join(told)}"
    return next((reason for pattern, reason in _REASONS if pattern.search(text)), type(error).__name__)
