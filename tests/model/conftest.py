"""Tiny models on disk, made once."""

from pathlib import Path

import pytest

from tests.model.tiny_models import FAMILIES, save_tiny_model


@pytest.fixture(scope="session")
def tiny_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directory of a tiny random model by family."""
    root = tmp_path_factory.mktemp("tiny")
    return {family: save_tiny_model(family, root / family) for family in FAMILIES}
