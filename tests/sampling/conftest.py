"""Tiny models on disk, loaded once."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from openrl.model.base_model import BaseModel
from tests.model.tiny_models import FAMILIES, load_tiny, save_tiny_model


@pytest.fixture(scope="session")
def tiny_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directory of a tiny random model by family."""
    root = tmp_path_factory.mktemp("tiny")
    return {family: save_tiny_model(family, root / family) for family in FAMILIES}


@pytest.fixture(scope="session")
def tiny_model(tiny_dirs: dict[str, Path]) -> Callable[[str], BaseModel]:
    """Our model of a family."""

    @cache
    def load(family: str) -> BaseModel:
        return load_tiny(tiny_dirs[family])

    return load


@pytest.fixture(scope="session")
def llama(tiny_model: Callable[[str], BaseModel]) -> BaseModel:
    """Our Llama."""
    return tiny_model("llama")
