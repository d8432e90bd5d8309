"""What one run sees of the engine."""

from pathlib import Path

import numpy as np
import pytest
import torch

from openrl.errors import RequestFailed
from openrl.model.base_model import BaseModel
from openrl.model.peft_files import PREFIX
from openrl.protocol.datum import Datum, LossInput, SparseCsr
from openrl.protocol.losses import LOSSES
from openrl.training.base import AdamParams, OptimStep, finish_pass
from tests.training.workbench import (
    engine_of,
    request,
    rl_datum,
    run_jobs,
    run_spec,
    same_outputs,
    same_state,
    same_tensors,
    sft_datum,
    step,
)

LENGTHS = (5, 33, 8, 70, 21, 1, 40, 16)


def test_one_request_of_eight_datums_equals_two_of_four(model: BaseModel, tmp_path: Path):
    engine = engine_of(model, tmp_path)
    data = [sft_datum(seed, length) for seed, length in enumerate(LENGTHS)]
    for run_id in ("whole", "halves"):
        engine.open_run(run_spec(run_id), None)
    (whole,) = run_jobs(engine, request("whole", *data))
    first, second = run_jobs(engine, request("halves", *data[:4]), request("halves", *data[4:]))
    for one, other in zip(whole.outputs, [*first.outputs, *second.outputs], strict=True):
        assert np.array_equal(one["logprobs"], other["logprobs"])
    assert whole.metrics["loss:sum"] == pytest.approx(first.metrics["loss:sum"] + second.metrics["loss:sum"], rel=1e-12)
    left, right = engine.export_run("whole").gradients, engine.export_run("halves").gradients
    assert max(float((left[name] - right[name]).abs().max()) for name in left) < 1e-5


def test_a_datum_longer_than_the_micro_batch_goes_alone(model: BaseModel, tmp_path: Path):
    engine = engine_of(model, tmp_path, micro_batch_tokens=16)
    wide = engine_of(model, tmp_path / "wide", micro_batch_tokens=4096)
    data = [sft_datum(seed, length) for seed, length in enumerate(LENGTHS)]
    for each in (engine, wide):
        each.open_run(run_spec("r"), None)
        run_jobs(each, request("r", *data))
    assert same_state(engine.export_run("r"), wide.export_run("r"))


@pytest.mark.parametrize("loss_fn", LOSSES)
def test_forward_changes_nothing_and_returns_what_forward_backward_returns(
    model: BaseModel, tmp_path: Path, loss_fn: str
):
    engine = engine_of(model, tmp_path)
    engine.open_run(run_spec("r"), None)
    make = sft_datum if loss_fn == "cross_entropy" else rl_datum
    data = [make(seed, length) for seed, length in enumerate((9, 60, 30))]
    run_jobs(engine, request("r", *data, loss_fn=loss_fn))
    step(engine, "r")
    before = engine.export_run("r")
    (forward,) = run_jobs(engine, request("r", *data, loss_fn=loss_fn, forward_only=True))
    assert same_state(before, engine.export_run("r"))
    (both,) = run_jobs(engine, request("r", *data, loss_fn=loss_fn))
    assert same_outputs(forward, both)
    assert set(forward.outputs[0]) == ({"logprobs"} if loss_fn == "cross_entropy" else {"logprobs", "ratio"})
    assert all(name.count(":") == 1 for name in forward.metrics)
    assert not same_state(before, engine.export_run("r"))


def test_logprobs_are_real_where_the_weight_is_zero(model: BaseModel, tmp_path: Path):
    engine = engine_of(model, tmp_path)
    engine.open_run(run_spec("r"), None)
    datum = sft_datum(1, 20)
    silent = Datum(datum.tokens, {**datum.loss_inputs, "weights": np.zeros(20, np.float32)})
    loud, quiet = run_jobs(engine, request("r", datum), request("r", silent, forward_only=True))
    assert np.array_equal(loud.outputs[0]["logprobs"], quiet.outputs[0]["logprobs"])
    assert bool((quiet.outputs[0]["logprobs"] < -1).all())


def test_zero_weights_give_zero_gradient_and_a_finite_loss(model: BaseModel, tmp_path: Path):
    engine = engine_of(model, tmp_path)
    engine.open_run(run_spec("r"), None)
    datum = sft_datum(1, 20)
    silent = Datum(datum.tokens, {**datum.loss_inputs, "weights": np.zeros(20, np.float32)})
    (result,) = run_jobs(engine, request("r", silent))
    assert result.metrics["loss:sum"] == 0.0
    assert all(not bool(gradient.any()) for gradient in engine.export_run("r").gradients.values())


@pytest.mark.parametrize("factor", [0.5, 2.0, -1.0])
def test_the_gradient_scales_with_the_weights(model: BaseModel, tmp_path: Path, factor: float):
    engine = engine_of(model, tmp_path)
    datum = sft_datum(3, 30)
    weights = datum.loss_inputs["weights"]
    assert isinstance(weights, np.ndarray)
    scaled = Datum(datum.tokens, {**datum.loss_inputs, "weights": (weights * factor).astype(np.float32)})
    for run_id, each in (("one", datum), ("scaled", scaled)):
        engine.open_run(run_spec(run_id), None)
        run_jobs(engine, request(run_id, each))
    one, other = engine.export_run("one").gradients, engine.export_run("scaled").gradients
    assert all(torch.equal(one[name] * factor, other[name]) for name in one)


def test_sparse_targets_equal_dense_ones_with_the_same_entries(model: BaseModel, tmp_path: Path):
    engine = engine_of(model, tmp_path)
    dense = sft_datum(5, 12, width=3)
    ids, weights = dense.loss_inputs["target_tokens"], dense.loss_inputs["weights"]
    assert isinstance(ids, np.ndarray)
    assert isinstance(weights, np.ndarray)
    listed = np.random.default_rng(0).random((12, 3)) > 0.5
    listed[4] = False
    crow = np.concatenate([[0], np.cumsum(listed.sum(1))]).astype(np.int64)
    columns = np.nonzero(listed)[1].astype(np.int64)
    sparse = Datum(
        dense.tokens,
        {
            "target_tokens": SparseCsr(ids[listed].astype(np.int64), crow, columns, (12, 3)),
            "weights": SparseCsr(weights[listed].astype(np.float32), crow, columns, (12, 3)),
        },
    )
    masked: dict[str, LossInput] = {
        "target_tokens": np.where(listed, ids, -1),
        "weights": np.where(listed, weights, 0).astype(np.float32),
    }
    for run_id, datum in (("sparse", sparse), ("dense", Datum(dense.tokens, masked))):
        engine.open_run(run_spec(run_id), None)
        (result,) = run_jobs(engine, request(run_id, datum))
        logprobs = result.outputs[0]["logprobs"]
        assert logprobs.shape == (12, 3)
        assert logprobs.dtype == np.float32
        assert bool((logprobs[~listed] == 0).all())
        assert bool((logprobs[listed] < 0).all())
        assert result.metrics["tokens:sum"] == listed.sum()
    assert same_tensors(engine.export_run("sparse").gradients, engine.export_run("dense").gradients)


def test_a_datum_without_any_target_gives_zeros(model: BaseModel, tmp_path: Path):
    engine = engine_of(model, tmp_path)
    engine.open_run(run_spec("r"), None)
    empty = SparseCsr(np.zeros(0, np.int64), np.zeros(5, np.int64), np.zeros(0, np.int64), (4, 2))
    datum = Datum(np.arange(4, 8, dtype=np.int32), {"target_tokens": empty, "weights": np.ones((4, 2), np.float32)})
    alone, beside = run_jobs(engine, request("r", datum), request("r", datum, sft_datum(1, 9)))
    assert not alone.outputs[0]["logprobs"].any()
    assert alone.metrics["loss:sum"] == 0.0
    assert not beside.outputs[0]["logprobs"].any()


def test_a_request_without_datums_succeeds_with_sums_only(model: BaseModel, tmp_path: Path):
    engine = engine_of(model, tmp_path)
    engine.open_run(run_spec("r"), None)
    (result,) = run_jobs(engine, request("r", loss_fn="ppo"))
    assert result.outputs == ()
    assert result.metrics == {"loss:sum": 0.0, "tokens:sum": 0.0}


def test_an_optim_step_without_gradients_is_refused(model: BaseModel, tmp_path: Path):
    engine = engine_of(model, tmp_path)
    engine.open_run(run_spec("r"), None)
    run_jobs(engine, request("r", sft_datum(1, 9)))
    step(engine, "r")
    before = engine.export_run("r")
    (refused,) = engine.optim_step([OptimStep("r", AdamParams())])
    assert isinstance(refused, RequestFailed)
    assert refused.category == "user"
    assert "without gradients" in str(refused)
    assert same_state(before, engine.export_run("r"))


def test_equal_seeds_give_equal_adapters_and_others_differ(model: BaseModel, tmp_path: Path):
    engine = engine_of(model, tmp_path)
    for run_id, seed in (("a", 5), ("b", 5), ("c", 6)):
        engine.open_run(run_spec(run_id, seed=seed), None)
    assert same_state(engine.export_run("a"), engine.export_run("b"))
    assert not same_state(engine.export_run("a"), engine.export_run("c"))


@pytest.mark.parametrize("flags", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_asked_parts_are_trained(model: BaseModel, tmp_path: Path, flags: tuple[bool, bool, bool]):
    engine = engine_of(model, tmp_path)
    attention, mlp, unembed = flags
    engine.open_run(run_spec("r", train_attn=attention, train_mlp=mlp, train_unembed=unembed), None)
    names = engine.export_run("r").adapter
    assert any("self_attn" in name for name in names) == attention
    assert any("mlp" in name for name in names) == mlp
    assert any("lm_head" in name for name in names) == unembed
    (before,) = run_jobs(engine, request("r", sft_datum(1, 40)))
    assert step(engine, "r")["grad_norm"] > 0
    (after,) = run_jobs(engine, request("r", sft_datum(1, 40), forward_only=True))
    assert after.metrics["loss:sum"] < before.metrics["loss:sum"]


def test_a_run_continues_from_its_exported_state_bit_for_bit(model: BaseModel, tmp_path: Path):
    engine = engine_of(model, tmp_path)
    engine.open_run(run_spec("r"), None)
    run_jobs(engine, request("r", sft_datum(1, 30)))
    step(engine, "r")
    run_jobs(engine, request("r", sft_datum(2, 30)))
    state = engine.export_run("r")
    engine.open_run(run_spec("copy"), state)
    for run_id in ("r", "copy"):
        run_jobs(engine, request(run_id, sft_datum(3, 30)))
        step(engine, run_id)
    assert same_state(engine.export_run("r"), engine.export_run("copy"))
    assert not same_state(engine.export_run("r"), state)


def test_loaded_weights_come_with_or_without_the_moments(model: BaseModel, tmp_path: Path):
    engine = engine_of(model, tmp_path)
    for run_id in ("source", "full", "fresh"):
        engine.open_run(run_spec(run_id, seed=len(run_id)), None)
        run_jobs(engine, request(run_id, sft_datum(len(run_id), 30)))
        step(engine, run_id)
        run_jobs(engine, request(run_id, sft_datum(9, 10)))
    state = engine.export_run("source")
    engine.load_weights("full", state, with_optimizer=True)
    engine.load_weights("fresh", state, with_optimizer=False)
    full, fresh = engine.export_run("full"), engine.export_run("fresh")
    assert same_tensors(full.adapter, state.adapter)
    assert same_tensors(full.optimizer, state.optimizer)
    assert same_tensors(fresh.adapter, state.adapter)
    assert not any(bool(tensor.any()) for tensor in fresh.optimizer.values())
    assert full.gradients == fresh.gradients == {}
    outputs = run_jobs(engine, request("full", sft_datum(4, 9)), request("fresh", sft_datum(4, 9)))
    assert same_outputs(*outputs)


def test_a_state_of_another_rank_is_refused(model: BaseModel, tmp_path: Path):
    engine = engine_of(model, tmp_path)
    engine.open_run(run_spec("small", rank=2), None)
    engine.open_run(run_spec("large", rank=8), None)
    before = engine.export_run("large")
    with pytest.raises(RequestFailed, match=r"has shape \(2, 64\); the run's is \(8, 64\)"):
        engine.load_weights("large", engine.export_run("small"), with_optimizer=True)
    assert same_state(before, engine.export_run("large"))


def test_a_generator_that_is_dropped_half_way_leaves_the_run_as_it_was(model: BaseModel, tmp_path: Path):
    engine = engine_of(model, tmp_path, resident_runs=1)
    engine.open_run(run_spec("r"), None)
    before = engine.export_run("r")
    steps = engine.forward_backward([request("r", *(sft_datum(seed, 50) for seed in range(4)))])
    next(steps)
    steps.close()
    assert same_state(before, engine.export_run("r"))
    engine.open_run(run_spec("next"), None)
    (result,) = finish_pass(engine.forward_backward([request("next", sft_datum(1, 9))]))
    assert not isinstance(result, RequestFailed)


def test_a_gradient_that_overflows_fails_one_step_and_is_gone(model: BaseModel, tmp_path: Path):
    engine = engine_of(model, tmp_path)
    for run_id in ("r", "twin"):
        engine.open_run(run_spec(run_id), None)
    datum = sft_datum(1, 12)
    run_jobs(engine, request("r", _weighted(datum, 1e30)))
    (failed,) = engine.optim_step([OptimStep("r", AdamParams())])
    assert isinstance(failed, RequestFailed)
    assert "norm is inf; weights and optimizer are unchanged, the gradient is dropped" in str(failed)
    for run_id in ("r", "twin"):
        run_jobs(engine, request(run_id, datum))
        step(engine, run_id)
    assert same_state(engine.export_run("r"), engine.export_run("twin"))


def _weighted(datum: Datum, factor: float) -> Datum:
    weights = datum.loss_inputs["weights"]
    assert isinstance(weights, np.ndarray)
    return Datum(datum.tokens, {**datum.loss_inputs, "weights": (weights * factor).astype(np.float32)})


def test_a_copied_adapter_is_the_run_as_it_was(model: BaseModel, tmp_path: Path):
    engine = engine_of(model, tmp_path)
    engine.open_run(run_spec("r"), None)
    run_jobs(engine, request("r", sft_datum(1, 12)))
    step(engine, "r")
    before = engine.export_run("r").adapter
    copy = engine.copy_adapter("r")
    run_jobs(engine, request("r", sft_datum(2, 12)))
    step(engine, "r")
    assert same_tensors(copy.to_host().adapter, before)
    for name, pair in copy.adapter.pairs.items():
        assert torch.equal(pair.a_RD, before[f"{PREFIX}{name}.lora_A.weight"])
        assert torch.equal(pair.b_OR, before[f"{PREFIX}{name}.lora_B.weight"])
    assert not same_tensors(engine.export_run("r").adapter, before)
