"""Where things lie in a data directory, and who may use it."""

import contextlib
import fcntl
import os
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from pathlib import Path

from openrl.config import Config
from openrl.errors import Unavailable
from openrl.store.base import Blobs, Store
from openrl.store.blobs import DirectoryBlobs
from openrl.store.sql import create_store


@dataclass(frozen=True, slots=True)
class DataDir:
    """The directory of one server."""

    root: Path

    @property
    def blobs(self) -> Path:
        """Payloads, results and checkpoints."""
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
    def models(self) -> Path:
        """Models by name, beside those of the user's cache."""
        return self.root / "models"

    @contextlib.contextmanager
    def lock(self) -> Generator[None]:
        """Hold the directory; raises Unavailable while another server does. The kernel drops a dead server's lock."""
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._take(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _take(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise Unavailable(
                f"another server (process {owner}) uses the data directory {self.root}; "
                "stop it, or give this one its own with --data-dir"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)


@contextlib.asynccontextmanager
async def open_store(config: Config) -> AsyncGenerator[tuple[Store, Blobs]]:
    """The rows and files of `config.data_dir`, at the newest schema; raises Unavailable where they do not open."""
    data_dir = DataDir(config.data_dir)
    try:
        data_dir.root.mkdir(parents=True, exist_ok=True)
        blobs = DirectoryBlobs(data_dir.blobs)
    except OSError as error:
        raise Unavailable(f"the data directory {data_dir.root} cannot be used: {error}") from error
    store = await create_store(config.store.url or f"sqlite:///{data_dir.database}", blobs)
    try:
        yield store, blobs
    finally:
        await store.close()
