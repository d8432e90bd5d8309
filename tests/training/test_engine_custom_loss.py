"""Clients' own losses in the engine: equal to built-in ones, beside them, and harmless when they fail."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from openrl.errors import RequestFailed
from openrl.model.base_model import BaseModel
from openrl.protocol.custom_loss import CustomLoss
from openrl.protocol.datum import Datum, ForwardBackwardInput, LossInput
from openrl.training.base import finish_pass
from openrl.training.engine import PackedTrainingEngine
from tests.training.traced_losses import TOTAL, Returned, call, graph_of, read, traced
from tests.training.workbench import (
    engine_of,
    request,
    rl_datum,
    run_jobs,
    run_spec,
    same_outputs,
    same_state,
    sft_datum,
    step,
)

LENGTHS = (9, 30, 14, 50)


def likelihood(logprobs: Tensor, weights: Tensor) -> Returned:
    loss = -(weights * logprobs).sum()
    return loss, {"custom/nll:sum": loss, "custom/nll:mean": loss}


def ppo(logprobs: Tensor, old: Tensor, advantages: Tensor) -> Returned:
    ratio = torch.exp(logprobs - old)
    clipped = torch.clamp(ratio, 0.8, 1.2)
    return -torch.minimum(ratio * advantages, clipped * advantages).sum(), {}


LIKELIHOOD = traced(likelihood, weights=1)


def custom(run_id: str, loss: CustomLoss, *data: Datum, forward_only: bool = False) -> ForwardBackwardInput:
    """A request with a client's own loss, as the worker reads it."""
    return replace(request(run_id, *data, loss_fn="custom", forward_only=forward_only), custom_loss=loss)


def renamed(datum: Datum, **names: str) -> Datum:
    """The datum with some inputs under other names."""
    inputs: dict[str, LossInput] = {names.get(name, name): value for name, value in datum.loss_inputs.items()}
    return replace(datum, loss_inputs=inputs)


def opened(model: BaseModel, scratch: Path, *run_ids: str) -> PackedTrainingEngine:
    """An engine with trained runs: B is not zero, so every factor has a gradient."""
    engine = engine_of(model, scratch)
    for run_id in run_ids:
        engine.open_run(run_spec(run_id), None)
        run_jobs(engine, request(run_id, sft_datum(90, 20)))
        step(engine, run_id)
    return engine


def worst(engine: PackedTrainingEngine, left: str, right: str) -> float:
    """Largest difference of two runs' pending gradients, relative to the largest gradient."""
    one, other = engine.export_run(left).gradients, engine.export_run(right).gradients
    largest = max(float(value.abs().max()) for value in one.values())
    return max(float((one[name] - other[name]).abs().max()) for name in one) / largest


@pytest.mark.parametrize("width", [None, 3])
def test_a_loss_that_imitates_cross_entropy_equals_it(model: BaseModel, tmp_path: Path, width: int | None):
    engine = opened(model, tmp_path, "custom", "builtin")
    data = [sft_datum(seed, length, width) for seed, length in enumerate(LENGTHS)]
    rank = 1 if width is None else 2
    loss = LIKELIHOOD if rank == 1 else traced(likelihood, logprobs=2, weights=2)
    ours, theirs = run_jobs(engine, custom("custom", loss, *data), request("builtin", *data))
    for one, other in zip(ours.outputs, theirs.outputs, strict=True):
        assert np.array_equal(one["logprobs"], other["logprobs"])
    assert ours.metrics["loss:sum"] == pytest.approx(theirs.metrics["loss:sum"], rel=1e-6)
    assert ours.metrics["custom/nll:sum"] == ours.metrics["loss:sum"]
    assert ours.metrics["custom/nll:mean"] == pytest.approx(ours.metrics["loss:sum"] / len(data))
    assert worst(engine, "custom", "builtin") < 1e-6


def test_a_loss_that_imitates_ppo_equals_it(model: BaseModel, tmp_path: Path):
    engine = opened(model, tmp_path, "custom", "builtin")
    data = [rl_datum(seed, length) for seed, length in enumerate(LENGTHS)]
    loss = traced(ppo, old=1, advantages=1)
    job = custom("custom", loss, *(renamed(each, logprobs="old") for each in data))
    ours, theirs = run_jobs(engine, job, request("builtin", *data, loss_fn="ppo"))
    assert ours.metrics["loss:sum"] == pytest.approx(theirs.metrics["loss:sum"], rel=1e-5)
    assert worst(engine, "custom", "builtin") < 1e-5


def test_chunks_add_up_to_the_whole(model: BaseModel, tmp_path: Path):
    engine = opened(model, tmp_path, "whole", "chunks")
    data = [sft_datum(seed, length) for seed, length in enumerate(LENGTHS)]
    (whole,) = run_jobs(engine, custom("whole", LIKELIHOOD, *data))
    parts = run_jobs(engine, custom("chunks", LIKELIHOOD, *data[:1]), custom("chunks", LIKELIHOOD, *data[1:]))
    assert whole.metrics["loss:sum"] == pytest.approx(sum(part.metrics["loss:sum"] for part in parts), rel=1e-6)
    assert worst(engine, "whole", "chunks") < 1e-6


def test_custom_and_built_in_losses_share_a_pass_bit_for_bit(model: BaseModel, tmp_path: Path):
    data = [sft_datum(seed, length) for seed, length in enumerate(LENGTHS)]
    together = opened(model, tmp_path / "together", "custom", "builtin")
    jobs = (custom("custom", LIKELIHOOD, *data), request("builtin", *data[::-1]))
    results = run_jobs(together, *jobs)
    for job, result in zip(jobs, results, strict=True):
        alone = opened(model, tmp_path / job.run_id, job.run_id)
        (expected,) = run_jobs(alone, job)
        assert same_outputs(result, expected)
        assert same_state(together.export_run(job.run_id), alone.export_run(job.run_id))


FAILING = {
    "elements": read(graph_of(call("z", "torch.zeros", 10**12), TOTAL)),
    "the loss is not finite": read(
        graph_of(call("z", "torch.log", {"ref": "logprobs"}), call("out", "torch.sum", {"ref": "z"}))
    ),
    "does not depend": read(graph_of(call("z", "torch.ones", 2), call("out", "torch.sum", {"ref": "z"}))),
}


@pytest.mark.parametrize("message", FAILING)
def test_a_loss_that_fails_names_the_datum_and_touches_nobody(model: BaseModel, tmp_path: Path, message: str):
    engine = opened(model, tmp_path, "bad", "good", "twin")
    data = [sft_datum(seed, length) for seed, length in enumerate(LENGTHS)]
    run_jobs(engine, request("bad", data[0]))
    before = engine.export_run("bad")
    failed, succeeded = finish_pass(
        engine.forward_backward([custom("bad", FAILING[message], *data), request("good", *data)])
    )
    assert isinstance(failed, RequestFailed)
    assert failed.category == "user"
    assert "datum 0" in str(failed)
    assert message in str(failed)
    assert not isinstance(succeeded, RequestFailed)
    assert same_state(engine.export_run("bad"), before)
    run_jobs(engine, request("twin", *data))
    assert same_state(engine.export_run("good"), engine.export_run("twin"))


def test_forward_runs_the_loss_and_changes_nothing(model: BaseModel, tmp_path: Path):
    engine = opened(model, tmp_path, "r")
    before = engine.export_run("r")
    data = [sft_datum(seed, length) for seed, length in enumerate(LENGTHS)]
    (forward,) = run_jobs(engine, custom("r", LIKELIHOOD, *data, forward_only=True))
    assert same_state(engine.export_run("r"), before)
    (backward,) = run_jobs(engine, custom("r", LIKELIHOOD, *data))
    assert same_outputs(forward, backward)


def test_inputs_may_be_numbers_and_integers_and_of_any_length(model: BaseModel, tmp_path: Path):
    def scaled(logprobs: Tensor, scale: Tensor, table: Tensor, target_tokens: Tensor) -> Returned:
        return (logprobs * scale).sum() + table.sum(), {"custom/largest:sum": target_tokens.max()}

    engine = opened(model, tmp_path, "r")
    datum = sft_datum(1, 8)
    more: dict[str, LossInput] = {"scale": np.array([2.0], np.float32), "table": np.arange(3, dtype=np.int64)}
    datum = replace(datum, loss_inputs={**datum.loss_inputs, **more})
    (result,) = run_jobs(engine, custom("r", traced(scaled, scale=0, table=1, target_tokens=1), datum))
    logprobs = result.outputs[0]["logprobs"]
    assert result.metrics["loss:sum"] == pytest.approx(2.0 * float(logprobs.sum()) + 3.0, rel=1e-6)
    assert result.metrics["custom/largest:sum"] == float(np.max(np.asarray(datum.loss_inputs["target_tokens"])))


def test_a_rank_that_differs_is_refused_with_both(model: BaseModel, tmp_path: Path):
    engine = opened(model, tmp_path, "r")
    (failed,) = finish_pass(engine.forward_backward([custom("r", LIKELIHOOD, sft_datum(1, 8, width=2))]))
    assert isinstance(failed, RequestFailed)
    assert "rank 1" in str(failed)
    assert failed.category == "user"
