"""Contracts 8, 9, 11, 12: what a gradient is, and what an optimizer step does with it."""

import math
from typing import Any

import pytest
import tinker
import torch
from tinker import types
from tinker.types.optimizer import OptimizerConfigBase

from tests.contracts.loops import STEP, backward, batch, datum, new_run, raw_datum, resume, step_metrics, train
from tests.contracts.saved_state import SavedState, gradient_of, read_state, same_state, same_tensors, state_of
from tests.live_server import LiveServer

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def moved(alice: tinker.ServiceClient) -> tinker.TrainingClient:
    """A run whose factors are all off zero, so that every one has a gradient. Tests leave its weights alone."""
    run = new_run(alice)
    train(run, 2)
    return run


def assert_near(got: Tensors, expected: Tensors, tolerance: float = 1e-5) -> None:
    """Equal up to `tolerance` times the largest entry of all."""
    assert got.keys() == expected.keys()
    largest = max(float(each.abs().max()) for each in expected.values())
    assert largest > 0
    for name, value in expected.items():
        assert float((got[name] - value).abs().max()) <= tolerance * largest, name


# 8
@pytest.mark.parametrize("size", [4, 3, 1])
def test_gradients_add_up_however_the_datums_are_cut(server: LiveServer, moved: tinker.TrainingClient, size: int):
    data = batch(8)
    whole = backward(moved, data)
    expected = gradient_of(moved, server.data_dir)
    pieces = [backward(moved, data[start : start + size]) for start in range(0, 8, size)]
    assert whole.logprobs == [logprobs for piece in pieces for logprobs in piece.logprobs]
    assert_near(gradient_of(moved, server.data_dir), expected, 1e-6)


# 8
def test_gradients_are_gone_after_the_step(server: LiveServer, moved: tinker.TrainingClient):
    backward(moved, batch(2))
    first = gradient_of(moved, server.data_dir)
    backward(moved, batch(2))
    assert same_tensors(gradient_of(moved, server.data_dir), first)


# 9
@pytest.mark.parametrize("factor", [0.5, 2.0, -1.0])
def test_weights_scale_the_gradient(server: LiveServer, moved: tinker.TrainingClient, factor: float):
    tokens = [9, 30, 200, 41, 77]
    plain = backward(moved, [datum(tokens)])
    expected = gradient_of(moved, server.data_dir)
    scaled = backward(moved, [datum(tokens, factor)])
    assert scaled.loss == factor * plain.loss
    got = gradient_of(moved, server.data_dir)
    assert same_tensors(got, {name: factor * value for name, value in expected.items()})


# 9
def test_the_same_datum_twice_doubles_the_gradient(server: LiveServer, moved: tinker.TrainingClient):
    tokens = [9, 30, 200, 41, 77]
    plain = backward(moved, [datum(tokens)])
    expected = gradient_of(moved, server.data_dir)
    assert backward(moved, [datum(tokens), datum(tokens)]).loss == 2 * plain.loss
    assert same_tensors(gradient_of(moved, server.data_dir), {name: 2 * value for name, value in expected.items()})


# 9
def test_weight_zero_everywhere_gives_no_gradient_and_a_finite_loss(moved: tinker.TrainingClient):
    passed = backward(moved, [datum([9, 30, 200, 41], 0.0)])
    assert passed.loss == 0.0
    assert all(math.isfinite(each) and each < 0 for each in passed.logprobs[0])
    assert step_metrics(moved, types.AdamParams(learning_rate=0.0))["grad_norm"] == 0.0


# 11
def test_steps_are_those_of_torch_adamw(server: LiveServer, alice: tinker.ServiceClient):
    run = new_run(alice)
    train(run, 1)
    settings = [
        types.AdamParams(learning_rate=1e-2),
        types.AdamParams(learning_rate=3e-3, beta1=0.5, beta2=0.99, eps=1e-8, weight_decay=0.1),
        types.AdamParams(learning_rate=2e-2, beta1=0.0, beta2=0.5, eps=1e-3, grad_clip_norm=0.05),
        types.AdamParams(learning_rate=1e-2, beta1=0.95, weight_decay=0.01, grad_clip_norm=1e6),
    ]
    twin = TorchTwin(state_of(run, server.data_dir))
    for i, params in enumerate(settings):
        # The gradient is read on a copy of the run: reading it uses the optimizer up.
        copy = resume(alice, run.save_state(f"before-{i}").result().path)
        backward(copy, batch(3, 40 + i))
        gradient = gradient_of(copy, server.data_dir)
        backward(run, batch(3, 40 + i))
        metrics = step_metrics(run, params)
        assert metrics["grad_norm"] == pytest.approx(twin.step(gradient, params), rel=1e-6)
        assert metrics["learning_rate"] == params.learning_rate
        twin.assert_equals(state_of(run, server.data_dir))


class TorchTwin:
    """torch.optim.AdamW from a saved state on."""

    def __init__(self, state: SavedState) -> None:
        self.weights = {name: torch.nn.Parameter(value.clone()) for name, value in state.adapter.items()}
        self.optimizer = torch.optim.AdamW(self.weights.values())
        for name, parameter in self.weights.items():
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(state.optimizer["num_steps"])),
                "exp_avg": state.optimizer[f"exp_avg.{name}"].clone(),
                "exp_avg_sq": state.optimizer[f"exp_avg_sq.{name}"].clone(),
            }

    def step(self, gradient: Tensors, params: types.AdamParams) -> float:
        """Returns the gradient's norm before clipping."""
        for name, parameter in self.weights.items():
            parameter.grad = gradient[name].clone()
        bound = params.grad_clip_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), bound)
        for group in self.optimizer.param_groups:
            group.update(lr=params.learning_rate, betas=(params.beta1, params.beta2))
            group.update(eps=params.eps, weight_decay=params.weight_decay)
        self.optimizer.step()
        return float(norm)

    def assert_equals(self, state: SavedState) -> None:
        for name, parameter in self.weights.items():
            torch.testing.assert_close(state.adapter[name], parameter.detach(), rtol=1e-6, atol=1e-8)
            moments = self.optimizer.state[parameter]
            for kind in ("exp_avg", "exp_avg_sq"):
                torch.testing.assert_close(state.optimizer[f"{kind}.{name}"], moments[kind], rtol=1e-5, atol=1e-9)


# 11
@pytest.mark.parametrize(
    "params",
    [
        {"learning_rate": -1e-3},
        {"learning_rate": math.inf},
        {"beta1": 1.0},
        {"beta2": -0.1},
        {"eps": -1e-9},
        {"weight_decay": -0.1},
    ],
)
def test_a_setting_outside_its_bounds_is_refused(moved: tinker.TrainingClient, params: dict[str, float]):
    [name] = params
    with pytest.raises((tinker.BadRequestError, ValueError), match=rf"{name}|JSON"):
        moved.optim_step(types.AdamParams(**params)).result()


# 11
def test_an_optimizer_that_is_not_served_is_refused(alice: tinker.ServiceClient, moved: tinker.TrainingClient):
    with pytest.raises(tinker.BadRequestError, match="dimuon"):
        moved.optim_step(types.DimuonParams(learning_rate=1e-3)).result()
    with pytest.raises(tinker.BadRequestError, match="sgd"):
        new_run(alice, optimizer=OptimizerConfigBase(type="sgd"))


# 11
def test_a_step_without_gradients_is_refused_and_takes_nobody_elses(
    server: LiveServer, alice: tinker.ServiceClient, bob: tinker.ServiceClient
):
    run, neighbour, twin = new_run(alice), new_run(bob), new_run(bob)
    before = state_of(run, server.data_dir)
    backward(neighbour, batch(3))
    with pytest.raises(tinker.RequestFailedError, match="without gradients"):
        run.optim_step(STEP).result()
    assert same_state(state_of(run, server.data_dir), before)
    backward(twin, batch(3))
    assert step_metrics(neighbour) == step_metrics(twin)


# 12
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["weights", "logprobs", "advantages"])
def test_inputs_that_are_not_finite_are_refused(moved: tinker.TrainingClient, name: str, value: float):
    inputs: dict[str, Any] = {"logprobs": [-1.0, -1.0], "advantages": [1.0, 1.0]} if name != "weights" else {}
    bad = raw_datum([4, 5], target_tokens=[5, 6], **(inputs | {name: [1.0, value]}))
    with pytest.raises(tinker.BadRequestError, match=rf"datum 1: {name}: entry 1 is {value}"):
        moved.forward_backward(
            [raw_datum([4, 5], **good_inputs(name)), bad],
            "cross_entropy" if name == "weights" else "importance_sampling",
        ).result()


def good_inputs(name: str) -> dict[str, Any]:
    if name == "weights":
        return {"target_tokens": [5, 6], "weights": [1.0, 1.0]}
    return {"target_tokens": [5, 6], "logprobs": [-1.0, -1.0], "advantages": [1.0, 1.0]}


# 12
@pytest.mark.parametrize(
    ("loss_fn", "inputs"),
    [
        ("importance_sampling", {"logprobs": [-1e4, -1e4], "advantages": [1.0, 1.0]}),  # the ratio overflows
        ("cross_entropy", {"weights": [3e38, 3e38]}),  # the loss does not; the gradient does
    ],
)
def test_a_loss_or_gradient_that_is_not_finite_fails_and_changes_nothing(
    server: LiveServer, alice: tinker.ServiceClient, loss_fn: Any, inputs: dict[str, Any]
):
    run, twin = new_run(alice), new_run(alice)
    for each in (run, twin):
        train(each, 2)
        backward(each, batch(2, 9))  # waits for the step below
    hopeless = raw_datum([4, 5], target_tokens=[5, 6], **inputs)
    good = raw_datum([4, 5], **good_inputs("weights" if loss_fn == "cross_entropy" else "logprobs"))
    with pytest.raises(tinker.RequestFailedError, match=r"datum 1: .*finite"):
        run.forward_backward([good, hopeless], loss_fn).result()
    assert step_metrics(run) == step_metrics(twin)
    assert same_state(state_of(run, server.data_dir), state_of(twin, server.data_dir))


# 12
def test_a_step_that_overflows_fails_and_changes_nothing(server: LiveServer, alice: tinker.ServiceClient):
    run = new_run(alice)
    train(run, 2)
    path = run.save_state("before").result().path
    backward(run, [datum([4, 5, 6, 7], 1e30)])
    with pytest.raises(tinker.RequestFailedError, match="norm is inf; weights and optimizer are unchanged"):
        run.optim_step(STEP).result()
    assert same_state(state_of(run, server.data_dir), read_state(path, server.data_dir))
    twin = resume(alice, path)  # the gradient is gone with the step that failed, so the run goes on
    for each in (run, twin):
        backward(each, batch(2))
    assert step_metrics(run) == step_metrics(twin)
    assert same_state(state_of(run, server.data_dir), state_of(twin, server.data_dir))


def test_the_probe_reads_gradients_exactly(server: LiveServer, moved: tinker.TrainingClient):
    before = state_of(moved, server.data_dir).adapter
    backward(moved, batch(2))
    gradient = gradient_of(moved, server.data_dir)
    backward(moved, batch(2))
    norm = step_metrics(moved, types.AdamParams(learning_rate=0.0))["grad_norm"]
    squares = sum(float(value.double().square().sum()) for value in gradient.values())
    assert norm == pytest.approx(math.sqrt(squares), rel=1e-6)
    assert same_tensors(state_of(moved, server.data_dir).adapter, before)
