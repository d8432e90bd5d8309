"""Stores and blob stores of both kinds, for tests that must hold for each of them."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from openrl.store.base import Blobs, Store
from openrl.store.blobs import DirectoryBlobs
from openrl.store.connect import connect
from openrl.store.engines import open_engines
from openrl.store.memory import MemoryStore
from openrl.store.memory_blobs import MemoryBlobs
from openrl.store.remote_blobs import RemoteBlobs
from openrl.store.sql import create_store
from tests.postgres import PostgresServer, new_database
from tests.s3_server import Bucket
from tests.store.expectations import empty

NOW = 1000.0


@pytest.fixture(params=["memory", "directory", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Blobs]:
    if request.param == "s3":
        bucket: Bucket = request.getfixturevalue("bucket")
        remote = RemoteBlobs(connect(bucket.config()), tmp_path / "cache", 2**20, grace_s=0.0, litter_grace_s=0.0)
        yield remote
        remote.close()
        return
    if request.param == "memory":
        yield MemoryBlobs()
        return
    # Every pack is full after one group and may be swept at once.
    directory = DirectoryBlobs(tmp_path / "blobs", pack_bytes=1, grace_s=0.0)
    yield directory
    directory.close()


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, pair_blobs: Blobs) -> AsyncIterator[Store]:
    if request.param == "memory":
        made: Store = MemoryStore(pair_blobs, clock=lambda: NOW)
    else:
        made = await create_store(url_of(request, tmp_path), pair_blobs, clock=lambda: NOW)
    yield made
    await made.close()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    return url_of(request, tmp_path)


def url_of(request: pytest.FixtureRequest, folder: Path) -> str:
    """The database of the kind that is the fixture's parameter."""
    return request.getfixturevalue("database_url") if request.param == "postgres" else f"sqlite:///{folder}/store.db"


@pytest.fixture(scope="session")
def common_database(postgres: PostgresServer) -> str:
    """A database with all tables."""
    url = new_database(postgres)
    open_engines(url).dispose()
    return url


@pytest.fixture
def database_url(postgres: PostgresServer, common_database: str) -> str:
    """A database on PostgreSQL with all tables, and nothing in them. Making a new one would take longer."""
    empty(postgres, common_database)
    return common_database


@pytest.fixture
def pair_blobs(tmp_path: Path) -> Iterator[DirectoryBlobs]:
    directory = DirectoryBlobs(tmp_path / "store-blobs", pack_bytes=1, grace_s=0.0)
    yield directory
    directory.close()
