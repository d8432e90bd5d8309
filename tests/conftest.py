"""Fixtures that tests of several packages share."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import tests.interpreter  # noqa: F401  # pyright: ignore[reportUnusedImport]  (before triton)
from tests.kubernetes.network_namespaces import network_namespaces  # noqa: F401  # pyright: ignore[reportUnusedImport]  (a fixture)
from tests.live_cluster import start_cluster
from tests.live_server import LiveServer, start_server
from tests.postgres import PostgresServer, new_database, start_postgres
from tests.tiny_model import save_tiny_model

if TYPE_CHECKING:
    from tests.s3_server import Bucket, S3Server


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with a tokenizer, in Hugging Face format."""
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def s3_server() -> Iterator["S3Server"]:
    """A real S3 server on loopback."""
    from tests.s3_server import S3Server  # a machine for `pytest -m gpu` needs none of it

    running = S3Server()
    yield running
    running.stop()


@pytest.fixture
def bucket(s3_server: "S3Server", monkeypatch: pytest.MonkeyPatch) -> "Bucket":
    """An empty bucket, with its credentials in the environment."""
    from tests.s3_server import ENVIRONMENT

    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return s3_server.new_bucket()


@pytest.fixture(scope="session")
def server(
    tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[LiveServer]:
    """A real server over the tiny model, with two tenants; shared by all tests, so leave it running.

    OPENRL_TEST_CLUSTER=1: the first gateway of a cluster on PostgreSQL.
    """
    if os.environ.get("OPENRL_TEST_CLUSTER"):
        database = new_database(request.getfixturevalue("postgres"))
        directory = tmp_path_factory.mktemp("server-cluster")
        live: LiveServer = start_cluster(tiny_model_dir, directory, database).as_server()
    else:
        live = start_server(tiny_model_dir, tmp_path_factory.mktemp("server"))
    yield live
    live.stop()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A PostgreSQL server; tests make databases of their own in it."""
    server = start_postgres(tmp_path_factory.mktemp("postgres"))
    yield server
    server.stop()
