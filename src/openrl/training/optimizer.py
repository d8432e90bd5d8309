"""Steps one run's optimizer: the checks that all families share, and AdamW."""

import math
from typing import assert_never

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.adamw import adamw

from openrl.errors import RequestFailed
from openrl.training.base import AdamParams, DimuonParams, OptimizerParams
from openrl.training.dimuon import apply_dimuon
from openrl.training.runs import TrainingRun


@torch.no_grad()
def step_optimizer(run: TrainingRun, params: OptimizerParams) -> dict[str, float]:
    """Update the run's weights and moments, clear its gradients; returns metrics.

    Gradients are clipped as torch.nn.utils.clip_grad_norm_ does. Raises RequestFailed, with weights and moments
    unchanged, when there is no gradient or it is not finite, or a parameter is out of bounds or of another family.
    A gradient that is not finite is used up by the step that fails: kept, it would fail every later one.
    """
    _check(run, params)
    if run.gradients_P is None:
        raise RequestFailed("optim_step without gradients: no forward_backward succeeded since the last step", "user")
    norm = gradient_norm(run)
    if not math.isfinite(norm):
        run.gradients_P = None
        message = f"the gradient norm is {norm}; weights and optimizer are unchanged, the gradient is dropped"
        raise RequestFailed(message, "server")
    gradients_P = _clipped(run.gradients_P, norm, params.grad_clip_norm)
    match params:
        case AdamParams():
            _apply_adamw(run, gradients_P, params)
        case DimuonParams():
            apply_dimuon(run, gradients_P, params)
        case _:
            assert_never(params)
    run.num_steps += 1
    run.gradients_P = None
    return {"grad_norm": norm, "learning_rate": params.learning_rate, "num_steps": float(run.num_steps)}


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


def gradient_norm(run: TrainingRun) -> float:
    """Global L2 norm of the run's pending gradients, summed over its tensors in a fixed order."""
    assert run.gradients_P is not None
    factors = run.layout.pairs(run.gradients_P).values()
    norms = torch.stack([torch.linalg.vector_norm(part) for pair in factors for part in (pair.a_RD, pair.b_OR)])
    return float(torch.linalg.vector_norm(norms.double()))


def _clipped(gradients_P: Float[Tensor, " P"], norm: float, max_norm: float) -> Float[Tensor, " P"]:
    if max_norm <= 0:
        return gradients_P
    return gradients_P * min(1.0, max_norm / (norm + 1e-6))


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
