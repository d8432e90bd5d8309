"""Fronts against their definition, and studies of several objectives."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrl.errors import InvalidRequest
from openrl.research.evidence import compare, entries
from openrl.research.journal import Journal, read_state
from openrl.research.meter import NoMeter
from openrl.research.pareto import crowding, dominates, ranks, spread_order
from openrl.research.report import markdown_report
from openrl.research.runner import Runner
from openrl.research.study import load_study
from tests.live_server import openrl
from tests.research.studies import write_study

POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), max_size=12)


@given(POINTS)
def test_the_front_is_what_nobody_dominates_and_each_later_rank_is_dominated_by_the_one_before(
    points: list[tuple[int, ...]],
):
    rank = ranks(points)
    for point, mine in zip(points, rank, strict=True):
        above = [other for other, theirs in zip(points, rank, strict=True) if theirs == mine - 1]
        assert any(dominates(other, point) for other in above) == (mine > 0)
        same = [other for other, theirs in zip(points, rank, strict=True) if theirs == mine]
        assert not any(dominates(other, point) for other in same)
    order = spread_order(points)
    assert sorted(order) == list(range(len(points)))
    assert [rank[i] for i in order] == sorted(rank)


def test_the_ends_of_a_front_come_first_and_then_what_is_far_from_its_neighbours():
    points = [(0, 10), (1, 9), (2, 8), (6, 4), (10, 0)]
    assert crowding(points) == pytest.approx([float("inf"), 0.4, 1.0, 1.6, float("inf")])
    assert spread_order(points) == [0, 4, 3, 2, 1]


SOURCE = Path(__file__).parents[2] / "src"
TWO = f"""\
import sys
sys.path.insert(0, {str(SOURCE)!r})
from openrl.research import Attempt

attempt = Attempt.current(defaults={{"x": 0.0, "waste": 0}})
x, waste = attempt.params["x"], attempt.params["waste"]
attempt.report(1, good=x - waste + 0.001 * attempt.seed, cost=x * x + waste + 0.001 * attempt.seed)
"""
TEXT = """
objectives = [{metric = "good"}, {metric = "cost", goal = "minimize"}]
seeds = [1, 2]
promote = 2
parallel = 2
[budget]
attempts = 12
[proposer]
kind = "KIND"
num_random = 4
[space]
x = {low = 0, high = 2}
waste = {low = 0, high = 1}
[defaults]
x = 1
waste = 1
"""


def write(directory: Path, text: str) -> Path:
    write_study(directory, text, TWO)
    file = directory / "study.toml"
    file.write_text(file.read_text().replace('metric = "score"\n', ""))
    return directory


def test_a_study_of_two_objectives_has_a_front_which_the_promoted_come_from(tmp_path: Path):
    directory = write(tmp_path, TEXT.replace("KIND", "grid"))
    with Journal(directory) as journal:
        asyncio.run(Runner(directory, load_study(directory), journal, NoMeter()).run())
    study, state = load_study(directory), read_state(directory)
    front = [entry for entry in entries(study, state.attempts.values()) if entry.is_front]
    assert {(entry.params["x"], entry.params["waste"]) for entry in front} == {(0, 0), (1, 0), (2, 0)}
    again = {(each.params["x"], each.params["waste"]) for each in state.attempts.values() if each.is_promotion}
    assert again == {(0, 0), (2, 0), (1, 1)}  # the ends of the front, and the defaults
    by_good, by_cost = (compare(study, list(state.attempts.values()), each) for each in range(2))
    assert by_good is not None
    assert by_cost is not None
    assert (by_good.best.params["x"], by_good.difference) == (2, pytest.approx(2.0))
    assert (by_cost.best.params["x"], by_cost.difference) == (0, pytest.approx(2.0))
    report = markdown_report(study, state)
    for words in ("Metrics: good (maximize), cost (minimize)", "| 1 (front) |", "importance for cost"):
        assert words in report
    assert "The best by cost" in report
    assert "6 choices" not in report
    assert "(front)" in openrl("research", "status", str(directory)).stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tpe", "gp"])
def test_models_propose_for_several_objectives(tmp_path: Path, kind: str):
    directory = write(tmp_path, TEXT.replace("KIND", kind).replace("high = 2}", "high = 2.0}"))
    with Journal(directory) as journal:
        asyncio.run(Runner(directory, load_study(directory), journal, NoMeter()).run())
    state = read_state(directory)
    assert {each.state for each in state.attempts.values()} == {"done"}
    assert len({each.choice for each in state.attempts.values()}) == 9


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (TEXT.replace(', {metric = "cost", goal = "minimize"}', ""), "two or more"),
        (TEXT.replace('"cost"', '"good"'), "two or more different"),
        (TEXT + "[early_stop]\nfirst_rung = 1\n", "goes without objectives"),
        ("metric = 'good'\n" + TEXT, "in place of metric"),
    ],
)
def test_what_is_wrong_with_objectives_is_named(tmp_path: Path, text: str, fault: str):
    with pytest.raises(InvalidRequest) as caught:
        load_study(write(tmp_path, text.replace("KIND", "tpe")))
    assert fault in str(caught.value)
