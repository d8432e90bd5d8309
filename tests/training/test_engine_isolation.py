"""What one run must never see of the others: outputs, gradients and weights bit-equal."""

import itertools
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch

from openrl.errors import RequestFailed
from openrl.model.base_model import BaseModel
from openrl.protocol.datum import Datum, ForwardBackwardInput
from openrl.protocol.runs import RunSpec
from openrl.training.base import AdamParams, OptimStep, RunState, finish_pass
from openrl.training.engine import JobResult
from tests.training.workbench import (
    ADAM,
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

SPECS = (
    run_spec("a", rank=4, seed=1),
    run_spec("b", rank=16, seed=2),
    run_spec("c", rank=1, seed=3, train_unembed=False),
    run_spec("d", rank=8, seed=4, train_mlp=False),
)
JOBS = (
    request("a", *(sft_datum(seed, 7 * seed + 3) for seed in range(6)), loss_fn="cross_entropy"),
    request("b", *(rl_datum(seed, 5 * seed + 4) for seed in range(6)), loss_fn="ppo"),
    request("c", sft_datum(40, 30, width=3), sft_datum(41, 11), sft_datum(42, 17, width=5)),
    request("d", rl_datum(50, 61), rl_datum(51, 13), loss_fn="stable_reinforce", kl_coeff=0.1),
)


def alone(model: BaseModel, scratch: Path, spec: RunSpec, job: ForwardBackwardInput) -> tuple[object, RunState]:
    """Two rounds of a run with nobody else there."""
    engine = engine_of(model, scratch)
    engine.open_run(spec, None)
    run_jobs(engine, job)
    step(engine, spec.run_id)
    return run_jobs(engine, job)[0], engine.export_run(spec.run_id)


@pytest.mark.parametrize("micro_batch_tokens", [48, 200, 4096])
def test_a_run_has_the_same_bits_whoever_shares_its_batches(model: BaseModel, tmp_path: Path, micro_batch_tokens: int):
    engine = engine_of(model, tmp_path, micro_batch_tokens=micro_batch_tokens)
    for spec in SPECS:
        engine.open_run(spec, None)
    run_jobs(engine, *JOBS)
    for spec in SPECS:
        step(engine, spec.run_id)
    results = run_jobs(engine, *reversed(JOBS))[::-1]
    for index, (spec, job) in enumerate(zip(SPECS, JOBS, strict=True)):
        result, state = alone(model, tmp_path / spec.run_id, spec, job)
        assert same_outputs(results[index], result)  # pyright: ignore[reportArgumentType]
        assert same_state(engine.export_run(spec.run_id), state)


def test_micro_batches_of_changing_size_give_the_same_bits(model: BaseModel, tmp_path: Path):
    """What the worker chooses from measured times must not show in any result."""
    whole, sliced = engine_of(model, tmp_path / "whole"), engine_of(model, tmp_path / "sliced")
    sizes = itertools.cycle([1, 40, 7, 90, 16])
    for spec in SPECS:
        whole.open_run(spec, None)
        sliced.open_run(spec, None)
    rows = list[int]()
    steps = sliced.forward_backward(JOBS, lambda: next(sizes))
    while not isinstance(end := next_or_end(steps), list):
        rows.append(end)
    for expected, result in zip(run_jobs(whole, *JOBS), end, strict=True):
        assert not isinstance(result, RequestFailed)
        assert same_outputs(expected, result)
    assert len(rows) > 8
    assert sum(rows) == sum(datum.num_tokens for job in JOBS for datum in job.data)
    for spec in SPECS:
        assert same_state(whole.export_run(spec.run_id), sliced.export_run(spec.run_id))


def next_or_end(steps: Generator[int, None, list[JobResult]]) -> int | list[JobResult]:
    try:
        return next(steps)
    except StopIteration as end:
        return end.value


def poisoned(engine_state: RunState) -> RunState:
    """The state with one weight not a number, as a diverged run would have it."""
    adapter = {name: tensor.clone() for name, tensor in engine_state.adapter.items()}
    next(iter(adapter.values()))[0, 0] = float("nan")
    return RunState(adapter, engine_state.optimizer, engine_state.gradients)


def test_a_diverged_run_fails_alone(model: BaseModel, tmp_path: Path):
    engine = engine_of(model, tmp_path, micro_batch_tokens=4096)
    for spec in SPECS:
        engine.open_run(spec, None)
    run_jobs(engine, *JOBS)
    for spec in SPECS:
        step(engine, spec.run_id)
    engine.load_weights("b", poisoned(engine.export_run("b")), with_optimizer=True)
    before = engine.export_run("b")
    results = finish_pass(engine.forward_backward(JOBS))
    assert isinstance(results[1], RequestFailed)
    assert results[1].category == "server"
    assert str(results[1]) == "datum 0: a log-probability is not finite"
    assert not engine.export_run("b").gradients
    assert str(before) == str(engine.export_run("b"))
    for index in (0, 2, 3):
        result, state = alone(model, tmp_path / str(index), SPECS[index], JOBS[index])
        assert same_outputs(results[index], result)  # pyright: ignore[reportArgumentType]
        assert same_state(engine.export_run(SPECS[index].run_id), state)


def with_inputs(datum: Datum, **changes: np.ndarray) -> Datum:
    return Datum(datum.tokens, {**datum.loss_inputs, **changes})


BAD = (
    (with_inputs(rl_datum(1, 9), logprobs=np.full(9, -1e5, np.float32)), "the loss is not finite"),
    (with_inputs(rl_datum(1, 9), advantages=np.zeros(3, np.float32)), "advantages has shape"),
    (with_inputs(rl_datum(1, 9), target_tokens=np.full(9, 515)), "target 515 is outside the vocabulary of 515"),
    (Datum(np.full(9, 600, np.int32), rl_datum(1, 9).loss_inputs), "outside the vocabulary of 515"),
    (Datum(np.zeros(1025, np.int32), {}), "1025 tokens; there must be 1 to 1024"),
    (Datum(np.zeros(4, np.int32), {"target_tokens": np.zeros(4, np.int64)}), "needs loss_fn_inputs logprobs"),
)


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_a_bad_datum_fails_its_request_by_number_and_nobody_else(
    model: BaseModel, tmp_path: Path, bad: Datum, message: str
):
    engine = engine_of(model, tmp_path, micro_batch_tokens=100)
    for spec in SPECS[:2]:
        engine.open_run(spec, None)
    first = request("b", rl_datum(3, 20), loss_fn="ppo")
    run_jobs(engine, first)
    before = engine.export_run("b")
    spoilt = request("b", rl_datum(3, 20), rl_datum(4, 40), bad, rl_datum(5, 90), loss_fn="ppo")
    failed, good = finish_pass(engine.forward_backward([spoilt, JOBS[0]]))
    assert isinstance(failed, RequestFailed)
    assert failed.category == "user"
    assert str(failed).startswith("datum 2: ")
    assert message in str(failed)
    assert same_state(before, engine.export_run("b"))
    reference = engine_of(model, tmp_path / "alone")
    reference.open_run(SPECS[0], None)
    assert same_outputs(good, run_jobs(reference, JOBS[0])[0])  # pyright: ignore[reportArgumentType]
    assert same_state(engine.export_run("a"), reference.export_run("a"))


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (request("a", sft_datum(1, 5), loss_fn="mystery"), "unknown loss_fn 'mystery'"),
        (request("a", rl_datum(1, 5), loss_fn="ppo", epsilon=0.2), "has no setting 'epsilon'"),
        (request("nobody", sft_datum(1, 5)), "run 'nobody' is not open"),
    ],
)
def test_a_request_that_cannot_start_says_why(
    model: BaseModel, tmp_path: Path, job: ForwardBackwardInput, message: str
):
    engine = engine_of(model, tmp_path)
    engine.open_run(SPECS[0], None)
    failed, good = finish_pass(engine.forward_backward([job, JOBS[0]]))
    assert isinstance(failed, RequestFailed)
    assert message in str(failed)
    assert not isinstance(good, RequestFailed)


def test_a_failed_step_does_not_stop_the_others(model: BaseModel, tmp_path: Path):
    engine = engine_of(model, tmp_path)
    for spec in SPECS[:2]:
        engine.open_run(spec, None)
    run_jobs(engine, JOBS[0])
    steps = [OptimStep("nobody", ADAM), OptimStep("b", ADAM), OptimStep("a", AdamParams(grad_clip_norm=0.1))]
    unknown, empty, stepped = engine.optim_step(steps)
    assert isinstance(unknown, RequestFailed)
    assert isinstance(empty, RequestFailed)
    assert isinstance(stepped, dict)
    assert stepped["grad_norm"] > 0.1


def test_more_runs_than_slots_give_the_same_bits(model: BaseModel, tmp_path: Path):
    many = engine_of(model, tmp_path / "many")
    few = engine_of(model, tmp_path / "few", resident_runs=2, host_bytes=0)
    for engine in (many, few):
        for spec in SPECS:
            engine.open_run(spec, None)
    for _ in range(2):
        expected, got = (run_jobs(engine, *JOBS) for engine in (many, few))
        assert all(same_outputs(one, other) for one, other in zip(expected, got, strict=True))
        for spec in SPECS:
            assert step(many, spec.run_id) == step(few, spec.run_id)
    for spec in SPECS:
        assert same_state(many.export_run(spec.run_id), few.export_run(spec.run_id))


def test_passes_under_way_at_once_have_the_same_bits_with_one_slot_for_all(model: BaseModel, tmp_path: Path):
    engine = engine_of(model, tmp_path / "one", resident_runs=1, host_bytes=0)
    for spec in SPECS:
        engine.open_run(spec, None)
    results: dict[str, JobResult] = {}
    for _ in range(2):
        passes = {job.run_id: engine.forward_backward([job]) for job in JOBS[:3]}
        while passes:
            for run_id, each in list(passes.items()):
                try:
                    next(each)
                except StopIteration as end:
                    results[run_id] = end.value[0]
                    del passes[run_id]
            run_jobs(engine, JOBS[3])
            step(engine, "d")
        if not engine.export_run("a").optimizer["num_steps"]:
            for spec in SPECS[:3]:
                step(engine, spec.run_id)
    for spec, job in zip(SPECS[:3], JOBS[:3], strict=True):
        result, state = alone(model, tmp_path / spec.run_id, spec, job)
        assert same_outputs(results[spec.run_id], result)  # pyright: ignore[reportArgumentType]
        assert same_state(engine.export_run(spec.run_id), state)


def test_a_slot_used_again_starts_clean(model: BaseModel, tmp_path: Path):
    engine = engine_of(model, tmp_path, resident_runs=1)
    engine.open_run(SPECS[1], None)
    run_jobs(engine, JOBS[1])
    step(engine, "b")
    run_jobs(engine, JOBS[1])
    engine.close_run("b")
    engine.open_run(SPECS[2], None)
    run_jobs(engine, JOBS[2])
    step(engine, "c")
    result = run_jobs(engine, JOBS[2])[0]
    expected, state = alone(model, tmp_path / "alone", SPECS[2], JOBS[2])
    assert same_outputs(result, expected)  # pyright: ignore[reportArgumentType]
    assert same_state(engine.export_run("c"), state)


def test_a_run_opened_again_under_its_name_keeps_nothing(model: BaseModel, tmp_path: Path):
    engine = engine_of(model, tmp_path)
    engine.open_run(SPECS[0], None)
    fresh = engine.export_run("a")
    run_jobs(engine, JOBS[0])
    step(engine, "a")
    engine.open_run(SPECS[0], None)
    assert same_state(engine.export_run("a"), fresh)
    assert all(torch.isfinite(tensor).all() for tensor in fresh.adapter.values())
