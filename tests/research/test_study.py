"""study.toml is checked where it is read."""

from pathlib import Path

import pytest

from openrl.errors import InvalidRequest
from openrl.research.proposer import grid
from openrl.research.study import load_study
from tests.research.studies import SPACE, write_study

BUDGET = "[budget]\nattempts = 4\n"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (SPACE, "budget"),
        ("[budget]\nattempts = 0\n" + SPACE, "budget.attempts"),
        (BUDGET + "[space]\nx = {low = 3, high = 1}\n", "low is 3, above high, which is 1"),
        (BUDGET + "[space]\nx = {low = 0, high = 1, log = true}\n", "begins above 0"),
        (BUDGET + "[space]\nx = {values = []}\n", "space.x"),
        (BUDGET + SPACE + "[defaults]\nx = 9\nkind = 'a'\n", "defaults.x is 9"),
        (BUDGET + SPACE + "[defaults]\nx = 1\n", "defaults lack kind"),
        (BUDGET + SPACE + "[defaults]\ny = 1\n", "defaults.y is not in the space"),
        (BUDGET + SPACE + "[proposer]\nkind = 'magic'\n", "proposer.kind"),
        ("parallel = 'many'\n" + BUDGET + SPACE, "parallel"),
        ("parallel = 'auto'\nmax_parallel = 0\n" + BUDGET + SPACE, "max_parallel"),
        ("paralel = 3\n" + BUDGET + SPACE, "paralel"),
        ("= 3", "is not TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, fault: str):
    with pytest.raises(InvalidRequest, match=r"study\.toml") as caught:
        load_study(write_study(tmp_path, text))
    assert fault in str(caught.value)


def test_a_directory_without_one_says_how_to_get_one(tmp_path: Path):
    with pytest.raises(InvalidRequest, match="openrl research new"):
        load_study(tmp_path)


def test_a_grid_has_every_combination_once_and_needs_steps(tmp_path: Path):
    study = load_study(
        write_study(tmp_path, BUDGET + "[space]\nx = {low = 0, high = 1, step = 0.25}\nn = {low = 1, high = 2}\n")
    )
    points = grid(study.space)
    assert len({repr(each) for each in points}) == len(points) == 10
    assert points[-1] == {"x": 1.0, "n": 2}
    with pytest.raises(InvalidRequest, match=r"space\.x is continuous"):
        grid(load_study(write_study(tmp_path, BUDGET + "[space]\nx = {low = 0.0, high = 1.0}\n")).space)
    with pytest.raises(InvalidRequest, match="1000001 points"):
        grid(load_study(write_study(tmp_path, BUDGET + "[space]\nx = {low = 0, high = 1000000}\n")).space)
