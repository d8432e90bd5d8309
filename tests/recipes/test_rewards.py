import pytest

from recipes.text_to_sql.grader import Grade
from recipes.text_to_sql.rewards import REWARDS, group_advantages


def test_only_a_right_answer_earns_anything():
    assert REWARDS == {Grade.CORRECT: 1.0, Grade.WRONG: 0.0, Grade.FAILED: 0.0}


def test_advantages_are_relative_to_the_group():
    advantages = group_advantages([1.0, 0.0, 0.0, 0.0])
    assert advantages == pytest.approx([0.75, -0.25, -0.25, -0.25])


def test_a_group_of_equal_rewards_teaches_nothing():
    assert group_advantages([0.1, 0.1, 0.1]) is None
