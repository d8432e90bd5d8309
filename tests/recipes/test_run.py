from dataclasses import dataclass
from pathlib import Path

import pytest

from recipes.run import InvalidSettings, Settings, read_config, settings_of

CONFIG = """model = "small"
rank = 4
learning_rate = 1e-3
steps = 20
loss = "ppo"
[quick]
steps = 2
"""


@dataclass(frozen=True, kw_only=True)
class Example(Settings):
    loss: str


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text(CONFIG)
    return tmp_path / "config.toml"


def test_the_command_line_wins_over_the_size_and_the_size_over_the_rest(config: Path):
    read = read_config(config, "quick", ["learning_rate=5e-4", "loss=cispo", "seed=7"])
    settings = settings_of(Example, read)
    assert (settings.steps, settings.rank, settings.learning_rate, settings.loss) == (2, 4, 5e-4, "cispo")
    assert settings.seed == 7
    assert settings_of(Example, read_config(config, None, [])).steps == 20


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["stepz=3"], "'stepz'"),
        (["steps=many"], "steps = 'many'"),
        (["steps=1.5"], "steps = 1.5"),
        (["steps"], "NAME=VALUE"),
        (["seed=true"], "seed = True"),
    ],
)
def test_what_is_wrong_is_said_with_its_name(config: Path, overrides: list[str], words: str):
    with pytest.raises(InvalidSettings, match=words):
        settings_of(Example, read_config(config, None, overrides))


def test_a_size_that_does_not_exist_is_refused(config: Path):
    with pytest.raises(InvalidSettings, match="--size full"):
        read_config(config, "full", [])


def test_a_missing_value_is_named():
    with pytest.raises(InvalidSettings, match="learning_rate, loss, model, rank, steps"):
        settings_of(Example, {})
