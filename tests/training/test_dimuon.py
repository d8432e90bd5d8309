"""Dimuon against a float64 twin that does one matrix at a time, and against torch's Muon."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openrl.errors import RequestFailed
from openrl.model.base_model import BaseModel
from openrl.training.base import AdamParams, DimuonParams, OptimStep
from openrl.training.gradients import FlatLayout
from openrl.training.newton_schulz import orthogonalise
from openrl.training.optimizer import step_optimizer
from openrl.training.runs import TrainingRun
from tests.training.workbench import engine_of, request, run_jobs, run_spec, same_state, sft_datum, step

SHAPES = {"q_proj": (7, 5), "k_proj": (7, 5), "v_proj": (7, 2), "lm_head": (6, 11)}
SCHEDULE = [
    DimuonParams(1e-2),
    DimuonParams(3e-3, beta1=0.8),
    DimuonParams(1e-2, grad_clip_norm=0.5),
    DimuonParams(0.0),
    DimuonParams(2e-2, beta1=0.0, grad_clip_norm=1e6),
]
DIMUON = DimuonParams(1e-2)


def fresh_run() -> TrainingRun:
    layout = FlatLayout(SHAPES, rank=3)
    return TrainingRun(run_spec("r", rank=3, optimizer="dimuon"), layout, torch.randn(layout.size))


def factors(run: TrainingRun, flat_P: Tensor) -> list[Tensor]:
    return [part for pair in run.layout.pairs(flat_P).values() for part in (pair.a_RD, pair.b_OR)]


def twin_orthogonal(matrix: Tensor) -> Tensor:
    x = matrix / matrix.square().sum().sqrt()
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * (x @ x.T @ x) + 2.0315 * (x @ x.T @ x @ x.T @ x)
    return x


def test_steps_equal_a_float64_twin_matrix_by_matrix():
    torch.manual_seed(0)
    run = fresh_run()
    twins = [factor.double() for factor in factors(run, run.weights_P)]
    momenta = [torch.zeros_like(twin) for twin in twins]
    for params in SCHEDULE:
        run.gradients_P = torch.randn(run.layout.size)
        gradients = [each.double() for each in factors(run, run.gradients_P.clone())]
        norm = float(sum(each.square().sum() for each in gradients)) ** 0.5
        scale = min(1.0, params.grad_clip_norm / (norm + 1e-6)) if params.grad_clip_norm > 0 else 1.0
        for place, raw in enumerate(gradients):
            gradient = raw * scale
            momenta[place] = params.beta1 * momenta[place] + (1 - params.beta1) * gradient
            ahead = params.beta1 * momenta[place] + (1 - params.beta1) * gradient
            size = 0.2 * max(ahead.shape) ** 0.5
            twins[place] -= params.learning_rate * size * twin_orthogonal(ahead)
        metrics = step_optimizer(run, params)
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
        for twin, ours in zip(twins, factors(run, run.weights_P), strict=True):
            assert float((twin - ours).abs().max()) < 1e-5
    assert run.num_steps == len(SCHEDULE)
    assert run.gradients_P is None


def test_it_is_torchs_muon_up_to_that_ones_bfloat16():
    torch.manual_seed(1)
    run = fresh_run()
    twins = [factor.clone() for factor in factors(run, run.weights_P)]
    before = [twin.clone() for twin in twins]
    optimizer = torch.optim.Muon(twins, lr=1e-2, momentum=0.9, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        run.gradients_P = torch.randn(run.layout.size)
        for twin, gradient in zip(twins, factors(run, run.gradients_P.clone()), strict=True):
            twin.grad = gradient.clone()
        optimizer.step()
        step_optimizer(run, DIMUON)
    for start, twin, ours in zip(before, twins, factors(run, run.weights_P), strict=True):
        assert float((twin - ours).norm()) < 0.1 * float((twin - start).norm())


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (1, 5), (6, 6)])
def test_singular_values_come_near_1_and_the_update_has_its_size(shape: tuple[int, int]):
    matrix = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2))
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert float(values.max()) < 1.3
    assert float(values.min()) > 0.3
    rms = 0.2 * max(shape) ** 0.5 * orthogonalise(matrix).square().mean().sqrt()
    assert 0.12 < float(rms) < 0.26


def test_a_matrix_without_gradient_stays_where_it_is():
    assert torch.equal(orthogonalise(torch.zeros(2, 3, 5)), torch.zeros(2, 3, 5))


def test_parameters_of_the_other_family_are_refused_naming_both():
    run = fresh_run()
    run.gradients_P = torch.ones(run.layout.size)
    with pytest.raises(RequestFailed, match="parameters of adamw for a run that is trained by dimuon"):
        step_optimizer(run, AdamParams())
    assert run.gradients_P is not None


@pytest.mark.parametrize("params", [DimuonParams(-1.0), DimuonParams(1.0, beta1=1.0), DimuonParams(float("nan"))])
def test_parameters_out_of_bounds_are_refused(params: DimuonParams):
    run = fresh_run()
    run.gradients_P = torch.ones(run.layout.size)
    with pytest.raises(RequestFailed, match="must be finite and within"):
        step_optimizer(run, params)


def test_training_lowers_the_loss_and_resumes_bit_for_bit(model: BaseModel, tmp_path: Path):
    engine = engine_of(model, tmp_path)
    spec = run_spec("r", optimizer="dimuon")
    engine.open_run(spec, None)
    losses: list[float] = []
    for _ in range(6):
        (result,) = run_jobs(engine, request("r", sft_datum(1, 30)))
        losses.append(result.metrics["loss:sum"])
        step(engine, "r", DIMUON)
    assert all(later < earlier for earlier, later in pairwise(losses))
    state = engine.export_run("r")
    assert not any(name.startswith("exp_avg_sq.") for name in state.optimizer)
    other = engine_of(model, tmp_path / "other")
    other.open_run(spec, state)
    for each in (engine, other):
        run_jobs(each, request("r", sft_datum(2, 20)))
        step(each, "r", DIMUON)
    assert same_state(engine.export_run("r"), other.export_run("r"))


def test_runs_of_both_families_side_by_side_and_paged_out_keep_their_bits(model: BaseModel, tmp_path: Path):
    crowded = engine_of(model, tmp_path / "crowded", resident_runs=1, host_bytes=0)
    specs = [
        run_spec("muon", optimizer="dimuon"),
        run_spec("adam", seed=2),
        run_spec("more", seed=3, optimizer="dimuon"),
    ]
    params = {"muon": DimuonParams(1e-2, grad_clip_norm=0.5), "adam": AdamParams(1e-2), "more": DimuonParams(3e-3)}
    for spec in specs:
        crowded.open_run(spec, None)
    for number in range(3):
        run_jobs(crowded, *(request(spec.run_id, sft_datum(number, 20)) for spec in specs))
        results = crowded.optim_step([OptimStep(spec.run_id, params[spec.run_id]) for spec in specs])
        assert not any(isinstance(result, RequestFailed) for result in results)
    for spec in specs:
        alone = engine_of(model, tmp_path / spec.run_id)
        alone.open_run(spec, None)
        for number in range(3):
            run_jobs(alone, request(spec.run_id, sft_datum(number, 20)))
            (result,) = alone.optim_step([OptimStep(spec.run_id, params[spec.run_id])])
            assert not isinstance(result, RequestFailed)
        assert same_state(crowded.export_run(spec.run_id), alone.export_run(spec.run_id))


def test_moments_of_the_other_family_are_not_loaded(model: BaseModel, tmp_path: Path):
    engine = engine_of(model, tmp_path)
    engine.open_run(run_spec("muon", optimizer="dimuon"), None)
    engine.open_run(run_spec("adam"), None)
    muon, adam = engine.export_run("muon"), engine.export_run("adam")
    with pytest.raises(RequestFailed, match="moments of dimuon; the run is trained by adamw"):
        engine.load_weights("adam", muon, with_optimizer=True)
    with pytest.raises(RequestFailed, match="moments of adamw; the run is trained by dimuon"):
        engine.load_weights("muon", adam, with_optimizer=True)
    engine.load_weights("muon", adam, with_optimizer=False)
