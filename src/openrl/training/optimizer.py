"""Steps one run's optimizer: the checks that all families share, and AdamW."""

import math
from collections.abc import Sequence
from typing import Protocol, assert_never

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.adamw import adamw

from openrl.errors import RequestFailed
from openrl.training.base import AdamParams, DimuonParams, OptimizerParams
from openrl.training.dimuon import apply_dimuon
from openrl.training.runs import TrainingRun


class UpdateAdamW(Protocol):
    """An AdamW that also writes the copy of the weights in the run's slot."""

    def __call__(self, run: TrainingRun, slot: int, params: AdamParams, clip: float) -> None:
        """Move weights, moments and copy by the run's gradient times `clip`; the step is `run.num_steps` + 1."""
        ...


def step_optimizer(run: TrainingRun, params: OptimizerParams) -> dict[str, float]:
    """Update the run's weights and moments, clear its gradients; returns metrics.

    Gradients are clipped as torch.nn.utils.clip_grad_norm_ does. Raises RequestFailed, with weights and moments
    unchanged, when there is no gradient or it is not finite, or a parameter is out of bounds or of another family.
    A gradient that is not finite is used up by the step that fails: kept, it would fail every later one.
    """
    check_step(run, params)
    [norm] = gradient_norms([run])
    return apply_step(run, 0, params, norm, None)[0]


def check_step(run: TrainingRun, params: OptimizerParams) -> None:
    """Raise RequestFailed where a parameter is out of bounds or of another family, or there is no gradient."""
    _check(run, params)
    if run.gradients_P is None:
        raise RequestFailed("optim_step without gradients: no forward_backward succeeded since the last step", "user")


@torch.no_grad()
def apply_step(
    run: TrainingRun, slot: int, params: OptimizerParams, norm: float, fused: UpdateAdamW | None
) -> tuple[dict[str, float], bool]:
    """The second half of `step_optimizer`: metrics, and whether the slot's copy of the weights is written too."""
    assert run.gradients_P is not None, "the step is checked"
    if not math.isfinite(norm):
        run.gradients_P = None
        message = f"the gradient norm is {norm}; weights and optimizer are unchanged, the gradient is dropped"
        raise RequestFailed(message, "server")
    is_fused = fused is not None and isinstance(params, AdamParams)
    if fused is not None and isinstance(params, AdamParams):
        fused(run, slot, params, clip_factor(norm, params.grad_clip_norm))
    else:
        _apply(run, _clipped(run.gradients_P, norm, params.grad_clip_norm), params)
    run.num_steps += 1
    run.gradients_P = None
    metrics = {"grad_norm": norm, "learning_rate": params.learning_rate, "num_steps": float(run.num_steps)}
    return metrics, is_fused


def _apply(run: TrainingRun, gradients_P: Float[Tensor, " P"], params: OptimizerParams) -> None:
    match params:
        case AdamParams():
            _apply_adamw(run, gradients_P, params)
        case DimuonParams():
            apply_dimuon(run, gradients_P, params)
        case _:
            assert_never(params)


def _apply_adamw(run: TrainingRun, gradients_P: Float[Tensor, " P"], params: AdamParams) -> None:
    """Equal to torch.optim.AdamW."""
    assert run.exp_avg_sq_P is not None, "the run's family is checked"
    adamw(
        [run.weights_P],
        [gradients_P],
        [run.exp_avg_P],
        [run.exp_avg_sq_P],
        [],
        [torch.tensor(float(run.num_steps))],
        amsgrad=False,
        beta1=params.beta1,
        beta2=params.beta2,
        lr=params.learning_rate,
        weight_decay=params.weight_decay,
        eps=params.eps,
        maximize=False,
    )


def gradient_norms(runs: Sequence[TrainingRun]) -> list[float]:
    """Global L2 norms of the runs' pending gradients, in one transfer; no run's bits depend on the others."""
    if not runs:
        return []
    return torch.stack([_norm(run) for run in runs]).tolist()


@torch.no_grad()
def _norm(run: TrainingRun) -> Float[Tensor, ""]:
    """In fp64, on the run's device."""
    assert run.gradients_P is not None, "the step is checked"
    if run.gradients_P.is_cuda:  # one launch; its blocks' sums are added in a fixed order
        return torch.linalg.vector_norm(run.gradients_P).double()
    factors = run.layout.pairs(run.gradients_P).values()
    norms = torch.stack([torch.linalg.vector_norm(part) for pair in factors for part in (pair.a_RD, pair.b_OR)])
    return torch.linalg.vector_norm(norms.double())


def clip_factor(norm: float, max_norm: float) -> float:
    """What a gradient of this norm is multiplied with; no maximum: 1."""
    return 1.0 if max_norm <= 0 else min(1.0, max_norm / (norm + 1e-6))


def _clipped(gradients_P: Float[Tensor, " P"], norm: float, max_norm: float) -> Float[Tensor, " P"]:
    return gradients_P if max_norm <= 0 else gradients_P * clip_factor(norm, max_norm)


def _check(run: TrainingRun, params: OptimizerParams) -> None:
    family = "adamw" if isinstance(params, AdamParams) else "dimuon"
    if family != run.spec.optimizer:
        raise RequestFailed(f"parameters of {family} for a run that is trained by {run.spec.optimizer}", "user")
    bounds = {
        "learning_rate": (params.learning_rate, 0.0, math.inf),
        "beta1": (params.beta1, 0.0, math.nextafter(1.0, 0.0)),
        "grad_clip_norm": (params.grad_clip_norm, -math.inf, math.inf),
    }
    if isinstance(params, AdamParams):
        bounds["beta2"] = (params.beta2, 0.0, math.nextafter(1.0, 0.0))
        bounds["eps"] = (params.eps, 0.0, math.inf)
        bounds["weight_decay"] = (params.weight_decay, 0.0, math.inf)
    for name, (value, low, high) in bounds.items():
        if not (math.isfinite(value) and low <= value <= high):
            raise RequestFailed(f"{name} is {value}; it must be finite and within [{low}, {high}]", "user")
