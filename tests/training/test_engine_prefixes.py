"""The engine with shared prefixes against its slow twin that computes every datum by itself."""

from pathlib import Path

import numpy as np
import pytest

from openrl.errors import RequestFailed
from openrl.model.base_model import BaseModel
from openrl.protocol.datum import Datum, SparseCsr
from openrl.protocol.losses import LOSSES
from openrl.protocol.results import ForwardBackwardResult
from openrl.training.base import finish_pass
from tests.model.tiny_models import load_tiny, save_tiny_model
from tests.training.workbench import (
    engine_of,
    request,
    rl_datum,
    run_jobs,
    run_spec,
    same_outputs,
    same_state,
    sft_datum,
    shared_datums,
    step,
)

SPECS = (
    run_spec("a", rank=4, seed=1),
    run_spec("b", rank=16, seed=2, train_unembed=False),
    run_spec("c", rank=1, seed=3, train_mlp=False),
)
JOBS = (
    request("a", *shared_datums(1, 40, (9, 20, 1, 12)), sft_datum(2, 33), *shared_datums(3, 17, (5, 5))),
    request("b", *shared_datums(4, 150, (11, 30, 14), "ppo"), *shared_datums(5, 25, (8, 9), "ppo"), loss_fn="ppo"),
    request("c", *shared_datums(6, 20, (7, 16, 30), "gspo"), rl_datum(7, 50), loss_fn="gspo"),
)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """A tiny model with sliding windows of 20 tokens."""
    return load_tiny(save_tiny_model("gemma3", tmp_path_factory.mktemp("prefixes") / "gemma3"))


def check_twins(model: BaseModel, scratch: Path) -> None:
    """Two rounds of all jobs: equal bits of outputs, gradients equal to rounding."""
    shared = engine_of(model, scratch / "shared", micro_batch_tokens=256)
    plain = engine_of(model, scratch / "plain", micro_batch_tokens=256, shares_prefixes=False)
    for engine in (shared, plain):
        for spec in SPECS:
            engine.open_run(spec, None)
        run_jobs(engine, *JOBS)
    for spec in SPECS:
        expected, got = plain.export_run(spec.run_id).gradients, shared.export_run(spec.run_id).gradients
        assert expected.keys() == got.keys()
        scale = max(float(tensor.abs().max()) for tensor in expected.values())
        assert max(float((expected[name] - got[name]).abs().max()) for name in expected) < 1e-5 * scale
        step(shared, spec.run_id)
        plain.load_weights(spec.run_id, shared.export_run(spec.run_id), with_optimizer=True)
    for one, other in zip(run_jobs(shared, *JOBS), run_jobs(plain, *JOBS), strict=True):
        assert same_outputs(one, other)


def test_outputs_have_the_bits_of_the_twin_and_gradients_its_values(model: BaseModel, tmp_path: Path):
    check_twins(model, tmp_path)


def test_the_twins_agree_on_a_model_with_windows(gemma: BaseModel, tmp_path: Path):
    check_twins(gemma, tmp_path)


@pytest.mark.parametrize("loss_fn", LOSSES)
def test_every_loss_gives_the_outputs_of_the_twin_also_forward_only(model: BaseModel, tmp_path: Path, loss_fn: str):
    data = shared_datums(8, 30, (6, 11, 3), loss_fn)
    results: list[ForwardBackwardResult] = []
    for shares_prefixes in (True, False):
        engine = engine_of(model, tmp_path / str(shares_prefixes), shares_prefixes=shares_prefixes)
        engine.open_run(SPECS[0], None)
        for forward_only in (True, False):
            results += run_jobs(engine, request("a", *data, loss_fn=loss_fn, forward_only=forward_only))
    assert all(same_outputs(results[0], other) for other in results[1:])


@pytest.mark.parametrize("micro_batch_tokens", [64, 256])
def test_a_job_has_the_same_bits_alone_and_among_neighbours(model: BaseModel, tmp_path: Path, micro_batch_tokens: int):
    together = engine_of(model, tmp_path, micro_batch_tokens=micro_batch_tokens)
    for spec in SPECS:
        together.open_run(spec, None)
    results = run_jobs(together, *reversed(JOBS))[::-1]
    for spec, job, result in zip(SPECS, JOBS, results, strict=True):
        alone = engine_of(model, tmp_path / spec.run_id, micro_batch_tokens=micro_batch_tokens)
        alone.open_run(spec, None)
        assert same_outputs(run_jobs(alone, job)[0], result)
        assert same_state(alone.export_run(spec.run_id), together.export_run(spec.run_id))


def test_eight_completions_of_one_prompt_fit_where_two_whole_datums_would(model: BaseModel, tmp_path: Path):
    job = request("a", *shared_datums(1, 90, [15] * 8))
    num_passes: list[int] = []
    for shares_prefixes in (True, False):
        scratch = tmp_path / str(shares_prefixes)
        engine = engine_of(model, scratch, micro_batch_tokens=210, shares_prefixes=shares_prefixes)
        engine.open_run(SPECS[0], None)
        num_passes.append(sum(1 for _ in engine.forward_backward([job])))
    assert num_passes == [1, 4]


def sparse(datum: Datum) -> Datum:
    """The datum with its target in every second column of three, and none at every fifth token."""
    ids, weights = datum.loss_inputs["target_tokens"], datum.loss_inputs["weights"]
    assert isinstance(ids, np.ndarray)
    assert isinstance(weights, np.ndarray)
    counts = np.where(np.arange(len(ids)) % 5 == 0, 0, 2)
    crow = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    columns = np.tile([0, 2], int(counts.sum()) // 2).astype(np.int64)
    shape = (len(ids), 3)
    ids, weights = np.repeat(ids, counts), np.repeat(weights, counts)
    inputs = {
        "target_tokens": SparseCsr(ids.astype(np.int64), crow, columns, shape),
        "weights": SparseCsr(weights.astype(np.float32), crow, columns, shape),
    }
    return Datum(datum.tokens, dict(inputs))


def test_sparse_and_wide_targets_share_what_is_equal(model: BaseModel, tmp_path: Path):
    wide = [sparse(datum) for datum in shared_datums(9, 24, (4, 7, 5))]
    results: list[ForwardBackwardResult] = []
    for shares_prefixes in (True, False):
        engine = engine_of(model, tmp_path / str(shares_prefixes), shares_prefixes=shares_prefixes)
        engine.open_run(SPECS[0], None)
        results += run_jobs(engine, request("a", *wide, *shared_datums(9, 24, (4, 7))))
    assert same_outputs(*results)
    assert results[0].outputs[0]["logprobs"].shape == (28, 3)


def test_a_datum_whose_loss_is_not_finite_fails_its_job_by_number(model: BaseModel, tmp_path: Path):
    engine = engine_of(model, tmp_path, micro_batch_tokens=4096)
    for spec in SPECS[:2]:
        engine.open_run(spec, None)
    data = shared_datums(4, 40, (11, 30, 14), "ppo")
    data[1] = Datum(data[1].tokens, {**data[1].loss_inputs, "logprobs": np.full(70, -1e5, np.float32)})
    failed, good = finish_pass(engine.forward_backward([request("b", *data, loss_fn="ppo"), JOBS[0]]))
    assert isinstance(failed, RequestFailed)
    assert str(failed) == "datum 1: the loss is not finite"
    assert not engine.export_run("b").gradients
    alone = engine_of(model, tmp_path / "alone", micro_batch_tokens=4096)
    alone.open_run(SPECS[0], None)
    assert same_outputs(good, run_jobs(alone, JOBS[0])[0])  # pyright: ignore[reportArgumentType]
    assert same_state(engine.export_run("a"), alone.export_run("a"))
