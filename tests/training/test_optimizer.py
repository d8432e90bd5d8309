"""Our AdamW against torch's."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from openrl.errors import RequestFailed
from openrl.training.base import AdamParams
from openrl.training.gradients import FlatLayout
from openrl.training.optimizer import step_optimizer
from openrl.training.runs import TrainingRun
from tests.training.workbench import run_spec

SHAPES = {"model.layers.0.self_attn.q_proj": (7, 5), "lm_head": (6, 11)}
SCHEDULE = [
    AdamParams(learning_rate=1e-2),
    AdamParams(learning_rate=3e-3, beta1=0.8, beta2=0.99, eps=1e-8),
    AdamParams(learning_rate=5e-2, weight_decay=0.1, eps=1e-5),
    AdamParams(learning_rate=1e-2, grad_clip_norm=0.5),
    AdamParams(learning_rate=0.0, grad_clip_norm=1e6),
    AdamParams(learning_rate=2e-2, beta1=0.0, weight_decay=0.01, grad_clip_norm=1.0),
]


def fresh_run() -> TrainingRun:
    layout = FlatLayout(SHAPES, rank=3)
    return TrainingRun(run_spec("r", rank=3), layout, torch.randn(layout.size))


def test_steps_equal_torch_adamw_with_changing_parameters():
    torch.manual_seed(0)
    run = fresh_run()
    twins = [factor.clone() for pair in run.adapter().pairs.values() for factor in (pair.a_RD, pair.b_OR)]
    optimizer = torch.optim.AdamW(twins)
    for params in SCHEDULE:
        run.gradients_P = torch.randn(run.layout.size)
        pairs = run.layout.pairs(run.gradients_P.clone())
        gradients = [factor for pair in pairs.values() for factor in (pair.a_RD, pair.b_OR)]
        for twin, gradient in zip(twins, gradients, strict=True):
            twin.grad = gradient.clone()
        norm = torch.nn.utils.get_total_norm(gradients)
        if params.grad_clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(twins, params.grad_clip_norm, norm)
        optimizer.param_groups[0].update(
            lr=params.learning_rate,
            betas=(params.beta1, params.beta2),
            eps=params.eps,
            weight_decay=params.weight_decay,
        )
        optimizer.step()
        metrics = step_optimizer(run, params)
        ours = [factor for pair in run.adapter().pairs.values() for factor in (pair.a_RD, pair.b_OR)]
        for twin, factor in zip(twins, ours, strict=True):
            assert torch.allclose(twin, factor, rtol=1e-6, atol=1e-8)
        assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-6)
        assert metrics["learning_rate"] == params.learning_rate
    assert run.num_steps == len(SCHEDULE)


def test_steps_without_clipping_have_the_bits_of_torch_adamw():
    torch.manual_seed(1)
    run = fresh_run()
    twin = run.weights_P.clone()
    optimizer = torch.optim.AdamW([twin], lr=1e-2, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.1)
    for _ in range(20):
        twin.grad = torch.randn(run.layout.size)
        run.gradients_P = twin.grad.clone()
        optimizer.step()
        step_optimizer(run, AdamParams(learning_rate=1e-2, weight_decay=0.1))
        assert torch.equal(twin, run.weights_P)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_leave_the_run_as_it_was(bad: float):
    run = fresh_run()
    run.gradients_P = torch.ones(run.layout.size)
    step_optimizer(run, AdamParams())
    before = {name: buffer.clone() for name, buffer in run.buffers().items()}
    run.gradients_P = torch.ones(run.layout.size)
    run.gradients_P[5] = bad
    with pytest.raises(RequestFailed, match=r"gradient norm is (nan|inf)"):
        step_optimizer(run, AdamParams())
    assert run.num_steps == 1
    assert all(torch.equal(before[name], run.buffers()[name]) for name in before)
    assert run.gradients_P is None, "the step that failed has used it up"
    run.gradients_P = torch.ones(run.layout.size)
    assert step_optimizer(run, AdamParams())["num_steps"] == 2.0


@pytest.mark.parametrize(
    "changes",
    [{"learning_rate": -1.0}, {"beta1": 1.0}, {"beta2": -0.1}, {"eps": float("nan")}, {"weight_decay": -1e-3}],
)
def test_parameters_out_of_bounds_are_refused_by_name(changes: dict[str, float]):
    run = fresh_run()
    run.gradients_P = torch.ones(run.layout.size)
    with pytest.raises(RequestFailed, match=next(iter(changes))):
        step_optimizer(run, replace(AdamParams(), **changes))
    assert run.gradients_P is not None


def test_the_learning_rate_does_not_drift():
    run = fresh_run()
    rates: list[float] = []
    for _ in range(50):
        run.gradients_P = torch.ones(run.layout.size)
        rates.append(step_optimizer(run, AdamParams(learning_rate=1e-3))["learning_rate"])
    assert all(one == other for one, other in pairwise(rates))
