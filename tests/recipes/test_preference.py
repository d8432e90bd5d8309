import math

import pytest
import torch

from recipes.datums import supervised
from recipes.preference.pairs import NUM_HELD_OUT, make_split
from recipes.preference.train import dpo


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_country_is_both_trained_on_and_held_out(seed: int):
    train, held_out = make_split(seed)
    assert {pair.prompt for pair in train}.isdisjoint(pair.prompt for pair in held_out)
    assert len(held_out) == NUM_HELD_OUT
    assert len({pair.prompt for pair in train}) == len(train)


def test_only_one_word_has_the_preferred_form():
    pair = make_split(0)[1][0]
    assert pair.is_wanted(pair.chosen)
    assert not pair.is_wanted(pair.rejected)
    assert not pair.is_wanted("")
    assert not pair.is_wanted(" 42")
    assert pair.is_right(pair.rejected)


def test_at_the_reference_the_loss_is_the_log_of_two_and_pulls_the_answers_apart():
    datums = [supervised([1, 2], [3, 4]), supervised([1, 2], [5])]
    logprobs = [torch.tensor([-9.0, -1.0, -2.0], requires_grad=True), torch.tensor([-9.0, -4.0], requires_grad=True)]
    loss, metrics = dpo([(-3.0, -4.0)], beta=0.5)(datums, logprobs)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert metrics == {"accuracy": 0.0, "margin": 0.0}
    assert [each.grad.tolist() for each in logprobs if each.grad is not None] == [[0.0, -0.25, -0.25], [0.0, 0.25]]
