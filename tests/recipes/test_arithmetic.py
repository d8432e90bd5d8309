import random

import numpy as np
import pytest
import tinker

from recipes.arithmetic.tasks import Question, UnknownTask, make_questions
from recipes.arithmetic.train import Group, mean_reward


def sampled(*tokens: int) -> tinker.SampledSequence:
    logprobs = np.full(len(tokens), -0.5, np.float32)
    return tinker.SampledSequence(
        stop_reason="stop", sequence_id="s", tokens_np=np.array(tokens, np.int32), logprobs_np=logprobs
    )


def test_right_answers_get_likelier_and_wrong_ones_less_likely():
    right, wrong = Group([1, 2, 3], [sampled(4, 5), sampled(6)], [1.0, 0.0]).datums()
    assert right.model_input.to_ints() == [1, 2, 3, 4]
    assert right.loss_fn_inputs["target_tokens"].data == [2, 3, 4, 5]
    assert right.loss_fn_inputs["logprobs"].data == [0.0, 0.0, -0.5, -0.5]
    assert right.loss_fn_inputs["advantages"].data == [0.0, 0.0, 1.0, 1.0]
    assert wrong.loss_fn_inputs["advantages"].data == [0.0, 0.0, -1.0]


def test_a_group_of_equal_rewards_trains_nothing():
    assert Group([1, 2, 3], [sampled(4), sampled(5)], [1.0, 1.0]).datums() == []


def test_the_mean_reward_is_taken_over_all_answers():
    groups = [Group([1], [sampled(4), sampled(5)], [1.0, 0.0]), Group([2], [sampled(4), sampled(5)], [1.0, 1.0])]
    assert mean_reward(groups) == 0.75


def test_only_the_right_number_earns_anything():
    question = Question("3 + 4 =", "7")
    assert [question.reward(answer) for answer in (" 7", "7\n", "17", "7 8", "")] == [1.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_sum_is_asked_twice_in_any_order(seed: int):
    questions = make_questions("sums", random.Random(seed))
    terms = [frozenset(question.prompt.splitlines()[-1].split()[0:3:2]) for question in questions]
    assert len(set(terms)) == len(questions) == 208


def test_an_unknown_task_is_refused_by_name():
    with pytest.raises(UnknownTask, match="'products'"):
        make_questions("products", random.Random(0))
