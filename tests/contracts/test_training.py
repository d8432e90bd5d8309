"""Contracts 13-17: what is admitted, what an adapter is, forward, custom losses, long runs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tinker
import torch
from tinker import types

from tests.contracts.loops import (
    STEP,
    backward,
    batch,
    datum,
    new_run,
    numbers,
    raw_datum,
    sample,
    snapshot,
    step_metrics,
    train,
)
from tests.contracts.saved_state import gradient_of, same_state, same_tensors, state_of
from tests.live_server import LiveServer

CONTEXT_LENGTH = 256
GOOD: dict[str, Any] = {"target_tokens": [5, 6, 7], "weights": [1.0, 1.0, 1.0]}


def int_tensor(values: Sequence[int]) -> types.TensorData:
    return types.TensorData(data=list(values), dtype="int64", shape=[len(values)])


# 13
@pytest.mark.parametrize(
    ("tokens", "inputs", "message"),
    [
        (
            [4, 5, 6],
            {"weights": [1.0, 1.0]},
            r"datum 0: weights: rows is 2; it must be the datum's number of tokens, 3",
        ),
        (
            [4, 5, 6],
            {"target_tokens": [5, 6]},
            r"datum 0: target_tokens: rows is 2; it must be the datum's number of tokens, 3",
        ),
        ([4, 512, 6], {}, r"datum 0: tokens: entry 1 is 512; it must be between 0 and 511"),
        ([4, -1, 6], {}, r"datum 0: tokens: entry 1 is -1; it must be between 0 and 511"),
        ([4, 5, 6], {"target_tokens": [5, 6, 700]}, r"entry 2 is 700; it must be between -1 and 511"),
        ([4, 5, 6], {"weights": int_tensor([1, 1, 1])}, r"weights: dtype is 'int64'; it must be float32"),
        (
            [4, 5, 6],
            {"weights": torch.ones(3, 2)},
            r"weights: shape is \[3, 2\]; it must be that of target_tokens, \[3\]",
        ),
        ([4, 5, 6], {"advantages": [1.0, 1.0, 1.0]}, r"'advantages'; loss_fn 'cross_entropy' takes"),
        ([4] * 257, {"target_tokens": [4] * 257, "weights": [1.0] * 257}, r"number of tokens is 257; .* 1 and .* 256"),
    ],
)
def test_a_datum_that_does_not_fit_is_refused_with_value_and_bound(
    alice: tinker.ServiceClient, tokens: list[int], inputs: dict[str, Any], message: str
):
    run = new_run(alice)
    with pytest.raises(tinker.BadRequestError, match=message):
        run.forward_backward([raw_datum(tokens, **(GOOD | inputs))], "cross_entropy").result()


# 13
def test_the_whole_context_can_be_trained_on(alice: tinker.ServiceClient):
    tokens = [i % 512 for i in range(CONTEXT_LENGTH + 1)]
    assert backward(new_run(alice), [datum(tokens)]).loss > 0


# 14
@pytest.mark.parametrize(
    ("flags", "trained"),
    [
        ({"train_mlp": False, "train_unembed": False}, {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ({"train_attn": False, "train_unembed": False}, {"gate_proj", "up_proj", "down_proj"}),
        ({"train_attn": False, "train_mlp": False}, {"lm_head"}),
    ],
)
def test_only_the_parts_asked_for_are_trained(
    server: LiveServer, alice: tinker.ServiceClient, flags: dict[str, bool], trained: set[str]
):
    run = new_run(alice, rank=6, **flags)
    before = state_of(run, server.data_dir).adapter
    train(run, 2)
    after = state_of(run, server.data_dir).adapter
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in after} == trained
    assert not any(torch.equal(after[name], before[name]) for name in after)
    assert {value.shape[0] for name, value in after.items() if ".lora_A." in name} == {6}
    assert {value.shape[1] for name, value in after.items() if ".lora_B." in name} == {6}


# 14
def test_an_adapter_starts_as_nothing_and_follows_from_its_seed(server: LiveServer, alice: tinker.ServiceClient):
    first, same, other = (state_of(new_run(alice, seed=seed), server.data_dir) for seed in (5, 5, 6))
    assert same_state(first, same)
    a_names = [name for name in first.adapter if ".lora_A." in name]
    assert not any(torch.equal(first.adapter[name], other.adapter[name]) for name in a_names)
    assert all(not value.any() for name, value in first.adapter.items() if ".lora_B." in name)


# 14: a run that trains only one part samples from a base model whose other parts are as they were.
def test_equal_seeds_train_alike(server: LiveServer, alice: tinker.ServiceClient, bob: tinker.ServiceClient):
    mine, theirs = new_run(alice, seed=8), new_run(bob, seed=8)
    assert train(mine, 2) == train(theirs, 2)
    assert same_state(state_of(mine, server.data_dir), state_of(theirs, server.data_dir))


# 15
def test_forward_changes_nothing_and_gives_the_numbers_of_forward_backward(
    server: LiveServer, alice: tinker.ServiceClient
):
    run, twin = new_run(alice), new_run(alice)
    train(run, 2)
    train(twin, 2)
    forward = numbers(run.forward(batch(3, 5), "cross_entropy").result())
    assert forward == backward(run, batch(3, 5)) == backward(twin, batch(3, 5))
    run.forward(batch(2, 6), "cross_entropy").result()
    assert step_metrics(run) == step_metrics(twin)
    assert same_state(state_of(run, server.data_dir), state_of(twin, server.data_dir))
    run.forward(batch(1), "cross_entropy").result()
    with pytest.raises(tinker.RequestFailedError, match="without gradients"):
        run.optim_step(STEP).result()


# 16
def test_a_custom_loss_equals_the_built_in_one_that_it_imitates(server: LiveServer, alice: tinker.ServiceClient):
    run = new_run(alice)
    train(run, 1)
    data = batch(3, 2)

    def cross_entropy(given: list[types.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        weights = [torch.tensor(each.loss_fn_inputs["weights"].data) for each in given]
        return -sum(((w * p).sum() for w, p in zip(weights, logprobs, strict=True)), torch.zeros(())), {}

    custom = run.forward_backward_custom(data, cross_entropy).result()
    gradient = gradient_of(run, server.data_dir)
    built_in = backward(run, data)
    assert custom.metrics["loss:sum"] == pytest.approx(built_in.loss, rel=1e-6)
    assert same_tensors(gradient, gradient_of(run, server.data_dir))


# 16
def test_dpo_starts_at_ln_2(alice: tinker.ServiceClient):
    run = new_run(alice)
    chosen, rejected = [datum([4, 5, 6, 9, 20])], [datum([4, 5, 6, 31, 40])]
    anchors = [torch.tensor(logprobs) for logprobs in backward_free(run, chosen + rejected)]

    def dpo(_: list[types.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        gains = [(now - anchor).sum() for now, anchor in zip(logprobs, anchors, strict=True)]
        return -torch.nn.functional.logsigmoid(0.1 * (gains[0] - gains[1])), {}

    first = run.forward_backward_custom(chosen + rejected, dpo).result().metrics["loss:sum"]
    assert abs(first - math.log(2)) <= 6e-8
    assert step_metrics(run)["grad_norm"] > 0
    assert run.forward_backward_custom(chosen + rejected, dpo).result().metrics["loss:sum"] < first


def backward_free(run: tinker.TrainingClient, data: list[types.Datum]) -> list[list[float]]:
    return numbers(run.forward(data, "cross_entropy").result()).logprobs


# 17
@pytest.mark.parametrize(
    ("num_steps", "growth_mb"),
    [(150, 40), pytest.param(1000, 40, marks=pytest.mark.slow)],
)
def test_long_training_keeps_its_memory_and_its_learning_rate(
    server: LiveServer, alice: tinker.ServiceClient, num_steps: int, growth_mb: int
):
    run = new_run(alice)
    params = types.AdamParams(learning_rate=1e-4)
    train(run, 30, params=params)  # warm-up
    before = memory_mb(server)
    done = [each for first in range(0, num_steps, 50) for each in train(run, 50, first, params)]
    assert memory_mb(server) - before < growth_mb
    assert {each.metrics["learning_rate"] for each in done} == {1e-4}
    assert [each.metrics["num_steps"] for each in done] == [float(i) for i in range(31, 31 + num_steps)]
    assert all(math.isfinite(each.passed.loss) for each in done)


def memory_mb(server: LiveServer) -> float:
    """Resident memory of the server and its worker."""
    pids = [server.process.pid, *server.worker_pids]
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


# 14
def test_an_untrained_adapter_leaves_the_base_model_bit_for_bit(alice: tinker.ServiceClient):
    run = new_run(alice)
    base = alice.create_sampling_client(base_model=run.get_info().model_data.model_name).result()
    assert sample(snapshot(run), [4, 5, 6]) == sample(base, [4, 5, 6])
