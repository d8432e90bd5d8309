"""Flat buffers."""

import torch

from openrl.training.gradients import FlatLayout, StagedGradients

LAYOUT = FlatLayout({"x": (3, 5), "y": (4, 2)}, rank=2)


def test_factors_are_views_that_cover_the_buffer_once():
    flat_P = torch.arange(float(LAYOUT.size))
    pairs = LAYOUT.pairs(flat_P)
    assert {name: (pair.a_RD.shape, pair.b_OR.shape) for name, pair in pairs.items()} == {
        "x": ((2, 3), (5, 2)),
        "y": ((2, 4), (2, 2)),
    }
    assert torch.equal(LAYOUT.flatten(pairs), flat_P)
    pairs["y"].b_OR.zero_()
    assert not bool(flat_P[-4:].any())


def test_staged_gradients_add_up_and_notice_overflow():
    staged = StagedGradients(LAYOUT, torch.device("cpu"))
    for _ in range(2):
        staged.add("x", torch.full((2, 3), 2e38), torch.ones(5, 2))
    assert not staged.is_finite()
    assert torch.equal(staged.flat_P[6:16], torch.full((10,), 2.0))
    staged = StagedGradients(LAYOUT, torch.device("cpu"))
    assert staged.is_finite()
    staged.add("y", torch.full((2, 4), float("nan")), torch.ones(2, 2))
    assert not staged.is_finite()
