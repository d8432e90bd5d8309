"""Losses that clients trace: run on the server, equal to running on the client."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tinker
import torch
import torch.nn.functional as F
from tinker import types
from tinker.lib.public_interfaces.custom_loss import LossHandle
from torch import Tensor

from tests.contracts.loops import TEXT, batch, new_run, numbers, raw_datum, step_metrics, train
from tests.contracts.saved_state import gradient_of
from tests.contracts.test_gradients import assert_near
from tests.live_server import LiveServer

Returned = tuple[Tensor, dict[str, Tensor]]


def likelihood(logprobs: Tensor, weights: Tensor) -> Returned:
    loss = -(logprobs * weights).sum()
    return loss, {"custom/nll:sum": loss, "custom/nll:mean": loss}


def preference(logprobs: Tensor, reference: Tensor, side: Tensor, beta: Tensor) -> Returned:
    """DPO over a datum that holds both answers: side is 1 on the chosen one, -1 on the other, 0 on the prompt."""
    margin = beta * ((logprobs - reference) * side).sum()
    return -F.logsigmoid(margin), {"custom/margin:mean": margin, "custom/right:mean": (margin > 0).float()}


PREFERENCE_RANKS: Any = {"logprobs": 1, "reference": 1, "side": 1, "beta": 0}


@pytest.fixture(scope="module")
def handle(alice: tinker.ServiceClient) -> LossHandle:
    created = alice.create_custom_loss(likelihood, {"logprobs": 1, "weights": 1}).result()
    assert created.loss_id is not None
    return created


@pytest.fixture(scope="module")
def dpo(alice: tinker.ServiceClient) -> LossHandle:
    return alice.create_custom_loss(preference, PREFERENCE_RANKS).result()


def tensor(values: Any, dtype: Any = "float32") -> types.TensorData:
    array = np.asarray(values, dtype)
    return types.TensorData(data=array.reshape(-1).tolist(), dtype=dtype, shape=list(array.shape))


def pair(seed: int, reference: list[float] | None = None) -> types.Datum:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 512, 14).tolist()
    side = [0.0] * 3 + [1.0] * 5 + [-1.0] * 5
    given = reference if reference is not None else rng.normal(-6, 1, 13)
    return raw_datum(
        tokens[:-1], target_tokens=tokens[1:], reference=tensor(given), side=tensor(side), beta=tensor(0.1)
    )


@pytest.mark.sdk("ServiceClient.create_custom_loss", "TrainingClient.forward_backward_custom")
def test_a_traced_loss_equals_the_built_in_one(alice: tinker.ServiceClient, server: LiveServer, handle: LossHandle):
    ours, theirs = new_run(alice), new_run(alice)
    data = batch(5)
    result = ours.forward_backward_custom(data, handle).result()
    expected = theirs.forward_backward(data, "cross_entropy").result()
    assert numbers(result).logprobs == numbers(expected).logprobs
    assert result.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], rel=1e-6)
    assert result.metrics["custom/nll:sum"] == pytest.approx(result.metrics["loss:sum"], rel=1e-6)
    assert result.metrics["custom/nll:mean"] == pytest.approx(result.metrics["loss:sum"] / 5, rel=1e-6)
    assert_near(gradient_of(ours, server.data_dir), gradient_of(theirs, server.data_dir))


@pytest.mark.sdk("ServiceClient.create_custom_loss", "TrainingClient.forward_backward_custom")
def test_it_equals_running_it_on_the_client(alice: tinker.ServiceClient, server: LiveServer, dpo: LossHandle):
    here, there = new_run(alice), new_run(alice)
    for run in (here, there):
        train(run, 2)
    data = [pair(seed) for seed in range(4)]
    served = there.forward_backward_custom(data, dpo).result()
    local = here.forward_backward_custom(data, replace(dpo, loss_id=None)).result()
    assert "surrogate_loss:sum" in local.metrics
    for name in ("loss:sum", "custom/margin:mean", "custom/right:mean"):
        assert served.metrics[name] == pytest.approx(local.metrics[name], rel=1e-5)
    assert_near(gradient_of(there, server.data_dir), gradient_of(here, server.data_dir))


@pytest.mark.sdk("TrainingClient.forward_backward_custom")
def test_dpo_at_step_0_is_ln_2(alice: tinker.ServiceClient, dpo: LossHandle):
    run = new_run(alice)
    data = [pair(seed) for seed in range(3)]
    scored = run.forward(data, "custom", {"loss_id": str(dpo.loss_id)}).result()
    own = [list(output["logprobs"].data) for output in scored.loss_fn_outputs]
    result = run.forward_backward_custom([pair(seed, own[seed]) for seed in range(3)], dpo).result()
    assert result.metrics["loss:sum"] == pytest.approx(3 * float(np.log(np.float32(2))), rel=1e-7)


@pytest.mark.sdk("TrainingClient.forward_backward_custom")
def test_chunk_boundaries_do_not_show(alice: tinker.ServiceClient, server: LiveServer, handle: LossHandle):
    whole, halves = new_run(alice), new_run(alice)
    data = batch(6)
    expected = whole.forward_backward_custom(data, handle).result()
    parts = [halves.forward_backward_custom(part, handle) for part in (data[:1], data[1:])]
    losses = [part.result().metrics["loss:sum"] for part in parts]
    assert sum(losses) == pytest.approx(expected.metrics["loss:sum"], rel=1e-6)
    assert_near(gradient_of(halves, server.data_dir), gradient_of(whole, server.data_dir))


@pytest.mark.sdk("TrainingClient.forward_backward_custom")
def test_a_loss_that_is_not_finite_names_the_datum_and_changes_nothing(alice: tinker.ServiceClient):
    def root(logprobs: Tensor, weights: Tensor) -> Returned:
        return torch.sqrt((logprobs * weights).sum()), {}

    bad = alice.create_custom_loss(root, {"logprobs": 1, "weights": 1}).result()
    run, twin = new_run(alice), new_run(alice)
    data = batch(2)
    expected = numbers(twin.forward_backward(data, "cross_entropy").result()), step_metrics(twin)
    passed = run.forward_backward(data, "cross_entropy").result()
    good = raw_datum(TEXT[:3], target_tokens=TEXT[1:4], weights=[-1.0] * 3)
    with pytest.raises(Exception, match="datum 1: the loss is not finite"):
        run.forward_backward_custom([good, *data], bad).result()
    assert (numbers(passed), step_metrics(run)) == expected


@pytest.mark.sdk("ServiceClient.create_custom_loss")
def test_a_function_that_the_server_does_not_know_is_refused_by_name(alice: tinker.ServiceClient):
    def noisy(logprobs: Tensor) -> Returned:
        return (logprobs * torch.rand_like(logprobs)).sum(), {}

    with pytest.raises(tinker.BadRequestError, match=r"torch\.rand_like"):
        alice.create_custom_loss(noisy, {"logprobs": 1}).result()


@pytest.mark.sdk("ServiceClient.create_custom_loss", "TrainingClient.forward_backward_custom")
def test_another_tenants_loss_is_unknown(bob: tinker.ServiceClient, handle: LossHandle):
    run = new_run(bob)
    with pytest.raises(tinker.NotFoundError, match="does not exist"):
        run.forward_backward(batch(1), "custom", {"loss_id": str(handle.loss_id)}).result()
    with pytest.raises(tinker.NotFoundError, match="does not exist"):
        run.forward_backward(batch(1), "custom", {"loss_id": "loss-" + "0" * 40}).result()
    numbers(run.forward_backward(batch(1), "cross_entropy").result())
