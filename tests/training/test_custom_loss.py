"""Traced losses: the interpreter against the traced function itself, and what hostile graphs come to."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openrl.errors import RequestFailed
from openrl.training.custom_loss import custom_gradient, run_custom_loss
from tests.training.traced_losses import (
    REF,
    TOTAL,
    Returned,
    call,
    definition_of,
    graph_of,
    method,
    read,
    trace,
    traced,
)

LENGTH = 12


def ppo(logprobs: Tensor, old: Tensor, advantages: Tensor) -> Returned:
    ratio = torch.exp(logprobs - old)
    clipped = torch.clamp(ratio, 0.8, 1.2)
    loss = -torch.minimum(ratio * advantages, clipped * advantages).sum()
    return loss, {"custom/ratio:mean": ratio.mean(), "custom/clipped:sum": (ratio != clipped).float().sum()}


def dpo(logprobs: Tensor, reference: Tensor, is_chosen: Tensor) -> Returned:
    margin = ((logprobs - reference) * (2 * is_chosen - 1)).sum()
    return -F.logsigmoid(0.1 * margin), {"custom/margin:mean": margin}


def shapes(logprobs: Tensor, mask: Tensor, index: Tensor) -> Returned:
    n = logprobs.shape[0]
    halves = logprobs.reshape(2, n // 2)
    best, where = torch.max(halves, dim=1)
    picked = logprobs[index.long()] + logprobs.gather(0, index.to(torch.int64))
    pairs = logprobs[:, None] - logprobs[None, :]
    padded = torch.cat([logprobs[1:], torch.zeros(1, dtype=logprobs.dtype)])
    stacked = torch.stack((padded, logprobs.flip(0)), dim=0)[..., 1:-1]
    weight = torch.where(mask > 0, torch.ones_like(logprobs), torch.full((n,), 0.5))
    loss = best.sum() + picked.mean() + pairs.abs().mean() + stacked.pow(2).sum() / math.sqrt(4.0)
    loss = loss + (weight * logprobs.masked_fill(mask == 0, 0.0)).sum() + torch.logsumexp(logprobs, -1)
    return loss, {"custom/where:sum": where.sum(), "custom/loss:mean": loss.detach()}


def activations(logprobs: Tensor, x: Tensor) -> Returned:
    y = F.softplus(-x) + F.relu(x) + torch.sigmoid(x) * torch.tanh(logprobs) + torch.special.expit(x)
    z = F.log_softmax(logprobs, dim=-1) + logprobs.softmax(0) + torch.linalg.vector_norm(x) + abs(logprobs)
    loss = (
        F.mse_loss(logprobs, x)
        + F.huber_loss(logprobs, x, delta=0.5)
        + F.kl_div(logprobs, x, reduction="sum", log_target=True)
    )
    return loss + (y * z).sum() + (2**logprobs).sum() + (logprobs @ x) - x.std() + (~(x > 0)).sum(), {}


def prime(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logprobs, other = -torch.rand(2, LENGTH, generator=generator)
    return logprobs, other, torch.randint(0, 2, (LENGTH,), generator=generator)


LOSSES: list[tuple[Any, dict[str, int]]] = [
    (ppo, {"old": 1, "advantages": 1}),
    (dpo, {"reference": 1, "is_chosen": 1}),
    (shapes, {"mask": 1, "index": 1}),
    (activations, {"x": 1}),
]


@pytest.mark.parametrize(("fn", "ranks"), LOSSES, ids=lambda value: getattr(value, "__name__", ""))
def test_the_interpreter_has_the_bits_of_the_traced_function(fn: Any, ranks: dict[str, int]):
    loss = traced(fn, **ranks)
    logprobs, other, binary = prime(0)
    inputs = [logprobs.clone().requires_grad_(), other, binary][: 1 + len(ranks)]
    twin = logprobs.clone().requires_grad_()
    expected, metrics = fn(twin, *inputs[1:])
    expected.backward()
    got = run_custom_loss(loss, inputs)
    assert torch.equal(got.loss, expected)
    assert twin.grad is not None
    assert torch.equal(custom_gradient(loss, got.loss, inputs[0]), twin.grad)
    assert got.metrics == {name: float(value.detach()) for name, value in metrics.items()}


HOSTILE: list[tuple[str, list[dict[str, Any]]]] = [
    ("elements", [call("z", "torch.zeros", 10**12), method("out", "sum", {"ref": "z"})]),
    ("elements", [call("z", "torch.zeros", [10**6, 10**6]), TOTAL]),
    ("elements", [call("z", "torch.full", {"tuple": [10**12]}, 1.0), TOTAL]),
    ("elements", [call("z", "torch.arange", 10**12), TOTAL]),
    ("elements", [call("z", "torch.arange", 0.0, 1.0, 1e-15), TOTAL]),
    ("elements", [method("z", "new_zeros", REF, {"tuple": [10**12]}), TOTAL]),
    ("elements", [method("z", "expand", REF, 10**12, -1), TOTAL]),
    ("elements", [method("z", "repeat", REF, 10**12), TOTAL]),
    ("elements", [call("z", "torch.repeat_interleave", REF, 10**12), TOTAL]),
    ("elements", [call("z", "torch._C._nn.one_hot", REF, 10**12), TOTAL]),
    ("elements", [call("z", "torch.nn.functional.pad", REF, [0, 10**12]), TOTAL]),
    ("elements", [call("a", "torch.arange", 10**5), call("z", "torch.outer", {"ref": "a"}, {"ref": "a"}), TOTAL]),
    (
        "scalar operations",
        [
            call("a", "torch.ones", 3000, 3000),
            call("z", "torch.matmul", {"ref": "a"}, {"ref": "a"}),
            TOTAL,
        ],
    ),
    ("64 bits", [call("z", "operator.pow", 10, 10**9), TOTAL]),
    ("2\\*\\*63", [call("z", "operator.mul", 2**62, 2**62), TOTAL]),
    ("range error", [call("z", "math.exp", 10**9), TOTAL]),
    ("tensors and numbers", [call("z", "operator.mul", [1, 2], 10**9), TOTAL]),
    ("list of lists", [call("z", "operator.getitem", REF, {"tuple": [[[0, 1], [0, 1]]]}), TOTAL]),
    ("no items", [call("z", "operator.getitem", [REF], 0), TOTAL]),
    ("on tensors only", [method("z", "sum", 3), TOTAL]),
    ("on tensors only", [method("z", "sum"), TOTAL]),
    ("attribute", [call("a", "getattr", REF, "shape"), call("z", "getattr", {"ref": "a"}, "T"), TOTAL]),
    ("attribute", [call("z", "getattr", REF, "values"), TOTAL]),
    ("out of bounds", [call("z", "operator.getitem", REF, 10**9), TOTAL]),
    ("without dimensions", [call("out", "torch.exp", REF)]),
    ("division", [call("z", "operator.floordiv", 1, 0), TOTAL]),
]


@pytest.mark.parametrize(("message", "calls"), HOSTILE)
def test_a_hostile_graph_fails_by_name_and_at_once(message: str, calls: list[dict[str, Any]]):
    loss = read(graph_of(*calls))
    logprobs = prime(1)[0]
    before = logprobs.clone()
    with pytest.raises(RequestFailed, match=message) as failure:
        run_custom_loss(loss, [logprobs])
    assert failure.value.category == "user"
    assert "hand" in str(failure.value)
    assert torch.equal(logprobs, before)


def test_many_calls_that_each_fit_stop_at_the_bound_of_memory():
    calls = [call("n0", "torch.ones", 2**21)]
    calls += [call(f"n{i}", "torch.exp", {"ref": f"n{i - 1}"}) for i in range(1, 200)]
    with pytest.raises(RequestFailed, match=r"node 'n\d+' \(exp\).*bound|bytes"):
        run_custom_loss(read(graph_of(*calls, TOTAL)), [torch.zeros(2**16)])


def test_a_loss_without_logprobs_in_it_has_no_gradient():
    loss = read(graph_of(call("z", "torch.ones", 3), method("out", "sum", {"ref": "z"})))
    logprobs = torch.zeros(3, requires_grad=True)
    with pytest.raises(RequestFailed, match="does not depend on logprobs"):
        custom_gradient(loss, run_custom_loss(loss, [logprobs]).loss, logprobs)


def test_a_long_graph_of_small_calls_is_within_the_bound():
    def long(logprobs: Tensor) -> Returned:
        x = logprobs
        for _ in range(990):
            x = x + 1.0
        return x.sum(), {}

    assert float(run_custom_loss(traced(long), [torch.zeros(1)]).loss) == 990.0


def test_the_definition_is_what_the_sdk_sends():
    definition = definition_of(trace(ppo, old=1, advantages=1))
    loss = read(definition)
    assert [name for name, _ in loss.inputs] == ["logprobs", "old", "advantages"]
    assert [name for name, _ in loss.metrics] == ["custom/ratio:mean", "custom/clipped:sum"]
