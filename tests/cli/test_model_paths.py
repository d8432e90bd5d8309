from pathlib import Path

import pytest

from openrl.cli.model_paths import find_model
from openrl.errors import InvalidRequest


@pytest.fixture
def places(tmp_path: Path) -> Path:
    for name in ("cache/gemma", "odd=name/model", "plain"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def found(text: str, root: Path) -> tuple[str, str]:
    model = find_model(text, (root / "models", root / "cache"))
    return model.name, str(model.path.relative_to(root.resolve()))


def test_a_name_and_its_directory_are_cut_at_the_equals_sign(places: Path):
    assert found(f"org/name:full={places}/plain", places) == ("org/name:full", "plain")


def test_the_last_equals_sign_with_a_directory_behind_it_counts(places: Path):
    assert found(f"a=b={places}/odd=name/model", places) == ("a=b", "odd=name/model")


def test_a_name_alone_is_found_among_the_fetched_models(places: Path):
    assert found("gemma", places) == ("gemma", "cache/gemma")


def test_a_directory_alone_is_named_after_itself(places: Path):
    assert found(f"{places}/plain", places) == ("plain", "plain")


def test_what_is_not_there_is_refused_with_the_places_looked_at(places: Path):
    with pytest.raises(InvalidRequest, match=rf"'absent' was not found.*{places}/models/absent.*{places}/cache/absent"):
        find_model("absent", (places / "models", places / "cache"))
