"""Stores and blob stores of both kinds, for tests that must hold for each of them."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from openrl.store.base import Blobs, Store
from openrl.store.blobs import DirectoryBlobs
from openrl.store.memory import MemoryStore
from openrl.store.memory_blobs import MemoryBlobs
from openrl.store.sql import create_store

NOW = 1000.0


@pytest.fixture(params=["memory", "directory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Blobs]:
    if request.param == "memory":
        yield MemoryBlobs()
        return
    # Every pack is full after one group and may be swept at once.
    directory = DirectoryBlobs(tmp_path / "blobs", pack_bytes=1, grace_s=0.0)
    yield directory
    directory.close()


@pytest.fixture(params=["memory", "sql"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, pair_blobs: Blobs) -> AsyncIterator[Store]:
    if request.param == "memory":
        made: Store = MemoryStore(pair_blobs, clock=lambda: NOW)
    else:
        made = await create_store(f"sqlite:///{tmp_path}/store.db", pair_blobs, clock=lambda: NOW)
    yield made
    await made.close()


@pytest.fixture
def pair_blobs(tmp_path: Path) -> Iterator[DirectoryBlobs]:
    directory = DirectoryBlobs(tmp_path / "store-blobs", pack_bytes=1, grace_s=0.0)
    yield directory
    directory.close()
