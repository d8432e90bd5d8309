"""A tiny model, loaded once: the engine never changes its weights."""

from pathlib import Path

import pytest

from openrl.model.base_model import BaseModel
from tests.model.tiny_models import load_tiny, save_tiny_model


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny random Qwen3."""
    return save_tiny_model("qwen3", tmp_path_factory.mktemp("training") / "qwen3")


@pytest.fixture(scope="session")
def model(tiny_dir: Path) -> BaseModel:
    """The tiny model on the CPU in fp32."""
    return load_tiny(tiny_dir)
