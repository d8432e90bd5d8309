"""Fixtures that tests of several packages share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import tests.interpreter  # noqa: F401  # pyright: ignore[reportUnusedImport]  (before triton)
from tests.live_server import LiveServer, start_server
from tests.tiny_model import save_tiny_model


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with a tokenizer, in Hugging Face format."""
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def server(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A real server over the tiny model, with two tenants; shared by all tests, so leave it running."""
    live = start_server(tiny_model_dir, tmp_path_factory.mktemp("server"))
    yield live
    live.stop()
