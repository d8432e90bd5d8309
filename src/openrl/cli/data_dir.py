"""Where things lie in a data directory, and who may use it."""

import asyncio
import contextlib
import fcntl
import os
import re
import time
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from pathlib import Path

from openrl.config import Config
from openrl.errors import InvalidRequest, Unavailable
from openrl.store.base import Blobs, Store
from openrl.store.engines import SchemaTooOld
from openrl.store.open_blobs import open_blobs
from openrl.store.sql import SqlStore, create_store
from openrl.store.writer import Timed
from openrl.telemetry.logs import get_logger

_MIGRATION_LOOK_S = 1.0
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DataDir:
    """The directory of one server."""

    root: Path

    @property
    def blobs(self) -> Path:
        """Payloads, results and checkpoints, unless store.blobs_url names another place."""
        return self.root / "blobs"

    @property
    def database(self) -> Path:
        """Rows, unless store.url names another database."""
        return self.root / "openrl.db"

    @property
    def key_file(self) -> Path:
        """The API key made on the first start."""
        return self.root / "key"

    @property
    def secret_file(self) -> Path:
        """What download links and tokens are signed with."""
        return self.root / "secret"

    @property
    def rpc_secret_file(self) -> Path:
        """What scheduler and workers prove to each other that they know."""
        return self.root / "rpc-secret"

    @property
    def models(self) -> Path:
        """Models by name, beside those of the user's cache."""
        return self.root / "models"

    @contextlib.contextmanager
    def lock(self) -> Generator[None]:
        """Hold the directory; raises Unavailable while another server does. The kernel drops a dead server's lock."""
        descriptor = self._take("lock", "server", "stop it, or give this one its own with --data-dir")
        try:
            yield
        finally:
            os.close(descriptor)

    def lock_scratch(self, worker_id: str) -> None:
        """Hold a worker's scratch directory for as long as this process lives, whatever program it becomes.

        Raises InvalidRequest for a name that is no file name, Unavailable while another worker has it.
        """
        if not re.fullmatch(r"[\w.-]{1,100}", worker_id):
            raise InvalidRequest(
                f"worker name {worker_id!r} must consist of 1 to 100 letters, digits, '.', '_' and '-'"
            )
        remedy = "give this one a name of its own with --name"
        os.set_inheritable(self._take(f"scratch/{worker_id}.lock", f"worker {worker_id!r}", remedy), True)

    def _take(self, name: str, what: str, remedy: str) -> int:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.root / name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise Unavailable(
                f"another {what} (process {owner}) uses the data directory {self.root}; {remedy}"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        return descriptor


@contextlib.asynccontextmanager
async def open_store(config: Config, timed: Timed | None = None) -> AsyncGenerator[tuple[Store, Blobs]]:
    """The rows and files that `config` names; raises Unavailable where they do not open.

    Without `store.migrate` it waits until the database has been migrated, at most for `store.migration_wait_s`.
    `timed` is told of the seconds that every commit took.
    """
    data_dir = DataDir(config.data_dir)
    try:
        data_dir.root.mkdir(parents=True, exist_ok=True)
        blobs = await asyncio.to_thread(open_blobs, config.store, data_dir.blobs)
    except OSError as error:
        raise Unavailable(f"the data directory {data_dir.root} cannot be used: {error}") from error
    try:
        store = await _open_rows(config, blobs, timed)
        try:
            yield store, blobs
        finally:
            await store.close()
    finally:
        await asyncio.to_thread(blobs.close)


async def _open_rows(config: Config, blobs: Blobs, timed: Timed | None) -> SqlStore:
    url = database_url(config)
    deadline = time.monotonic() + config.store.migration_wait_s
    while True:
        try:
            return await create_store(url, blobs, timed=timed, migrates=config.store.migrate)
        except SchemaTooOld as error:
            if time.monotonic() >= deadline:
                raise
            _log.warning("waiting for the migration", reason=str(error))
        await asyncio.sleep(_MIGRATION_LOOK_S)


def database_url(config: Config) -> str:
    """Of the rows."""
    return config.store.url or f"sqlite:///{DataDir(config.data_dir).database}"


def check_is_shared(store: Store) -> None:
    """Raises InvalidRequest for a store that one process has to itself."""
    if not store.cluster.is_shared:
        raise InvalidRequest(
            "gateway and scheduler as processes of their own need a database that they can share: set store.url to "
            "postgresql://...; on one machine `openrl serve` does without"
        )
