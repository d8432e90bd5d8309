import random
from collections.abc import Iterator

import pytest

from recipes.sandbox import Sandbox
from recipes.tool_use.questions import KINDS, Question, make_questions
from recipes.tool_use.train import Episode, reply


@pytest.fixture(scope="module")
def calculator() -> Iterator[Sandbox]:
    with Sandbox("recipes.tool_use.calculator:calculate") as calculator:
        yield calculator


def episode() -> Episode:
    return Episode(Question("How many?", "3*4", "12"), [1, 2])


def test_a_call_is_answered_with_its_result(calculator: Sandbox):
    asked = episode()
    assert reply(asked, "calc: 3*4\n", calculator) == "result: 12\n"
    assert not asked.is_over


@pytest.mark.parametrize("call", ["calc: 3*", "calc: 9**9**9", "calc: open('/etc/passwd').read()", "calc: 1/0"])
def test_a_call_that_fails_or_forbids_itself_is_an_error(calculator: Sandbox, call: str):
    assert reply(episode(), call, calculator) == "result: error\n"


@pytest.mark.parametrize(("line", "reward"), [("answer: 12\n", 1.0), ("answer: 13\n", 0.0), ("twelve\n", 0.0)])
def test_an_answer_ends_the_episode_and_only_the_right_one_earns(calculator: Sandbox, line: str, reward: float):
    asked = episode()
    assert reply(asked, line, calculator) is None
    assert (asked.is_over, asked.reward) == (True, reward)


def test_what_the_tool_wrote_is_no_part_of_the_gradient():
    written = episode()
    written.write([3, 4], [-0.5, -0.25])
    written.write([5, 6], None)
    written.write([7], [-1.0])
    inputs = written.datum(2.0).loss_fn_inputs
    assert inputs["target_tokens"].data == [2, 3, 4, 5, 6, 7]
    assert inputs["advantages"].data == [0.0, 2.0, 2.0, 0.0, 0.0, 2.0]
    assert inputs["logprobs"].data == [0.0, -0.5, -0.25, 0.0, 0.0, -1.0]


def test_held_out_questions_share_no_wording_with_training():
    for _, wordings in KINDS:
        assert wordings[-1] not in wordings[:-1]
    train = make_questions(200, False, random.Random(0))
    held_out = make_questions(60, True, random.Random("held-out"))
    assert {each.text for each in train}.isdisjoint(each.text for each in held_out)
    assert not any(word in each.text for each in train for word in ("buys", "breaks", "packs"))
    assert all(any(word in each.text for word in ("buys", "packs")) for each in held_out)


def test_the_calculation_of_every_question_gives_its_answer(calculator: Sandbox):
    for each in make_questions(30, False, random.Random(1)):
        assert calculator.run(each.calculation).value == each.answer
