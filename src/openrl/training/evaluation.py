"""Evaluates a loss on one datum: its value, outputs, statistics and the gradient of its log-probabilities.

Losses are computed in float64 on the host, datum by datum: log-probabilities are few, and a datum's
numbers must not depend on its neighbours. A client's own loss is computed in float32, as it was traced.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64
from numpy.typing import NDArray
from torch import Tensor

from openrl.errors import ErrorCategory, RequestFailed
from openrl.protocol.custom_loss import CustomLoss
from openrl.protocol.datum import Datum, DenseArray
from openrl.protocol.losses import LossSpec
from openrl.training.custom_loss import custom_gradient, run_custom_loss
from openrl.training.loss_inputs import Targets, read_custom_inputs, read_policy_inputs, read_weights
from openrl.training.losses import POLICY_LOSSES, PolicyInputs, PolicyTerms, Reals, cross_entropy

_GRADIENT = "the gradient of a log-probability"


@dataclass(frozen=True, slots=True)
class LossCall:
    """A loss with its settings resolved, as one request asks for it."""

    spec: LossSpec
    settings: Mapping[str, float]
    custom: CustomLoss | None = None  # a client's own loss


@dataclass(frozen=True, slots=True)
class PolicyStatistics:
    """How far one datum's policy is from its sampler, over the tokens that carry an advantage."""

    mean_ratio: float = 1.0
    max_ratio: float = 1.0
    mean_kl: float = 0.0  # sampling - target log-probability
    clip_fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One datum's part of a forward_backward result."""

    loss: float
    num_tokens: int  # that have a target
    outputs: dict[str, DenseArray]
    statistics: PolicyStatistics | None  # of policy-gradient losses
    gradient_MK: Float32[Tensor, "M K"] | None  # d loss / d logprobs; None when forward only
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])  # of a client's own loss


def evaluate(
    call: LossCall, datum: Datum, targets: Targets, logprobs_MK: Float32[Tensor, "M K"], with_gradient: bool
) -> Evaluation:
    """The loss of one datum, given its log-probabilities on the host.

    The gradient of a client's own loss needs autograd to be on. Raises InvalidRequest for inputs that do not fit, and
    RequestFailed for numbers that are not finite.
    """
    _require_finite(logprobs_MK.numpy(), "a log-probability", "server")
    if call.custom is not None:
        return _evaluate_custom(call.custom, datum, targets, logprobs_MK, with_gradient)
    logprobs = targets.spread_array(logprobs_MK.numpy())
    target_logprobs = logprobs.astype(np.float64)
    outputs: dict[str, DenseArray] = {"logprobs": logprobs.copy()}
    statistics: PolicyStatistics | None = None
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite fails below
        if call.spec.is_rl:
            inputs = read_policy_inputs(datum, call.spec, call.settings, target_logprobs)
            terms = POLICY_LOSSES[call.spec.name](inputs)
            loss, gradient, statistics = terms.loss, terms.gradient, _statistics(inputs, terms)
            outputs["ratio"] = terms.ratio.astype(np.float32)
        else:
            weights = read_weights(datum, targets)
            loss, gradient = cross_entropy(target_logprobs, weights), -weights
    _require_finite(loss, "the loss", "user")
    gradient_MK = _at_targets(gradient, targets) if with_gradient else None
    return Evaluation(loss, _num_targets(targets), outputs, statistics, gradient_MK)


def _evaluate_custom(
    custom: CustomLoss,
    datum: Datum,
    targets: Targets,
    logprobs_MK: Float32[Tensor, "M K"],
    with_gradient: bool,
) -> Evaluation:
    leaf_MK = logprobs_MK.clone().requires_grad_(with_gradient)
    target_logprobs = targets.spread(leaf_MK)
    returned = run_custom_loss(custom, read_custom_inputs(datum, custom, target_logprobs))
    loss = returned.loss.detach()
    _require_finite(loss.numpy(), "the loss", "user")
    gradient_MK = None
    if with_gradient:
        gradient_MK = custom_gradient(custom, returned.loss, leaf_MK).float()
        _require_finite(gradient_MK.numpy(), _GRADIENT, "user")
    outputs: dict[str, DenseArray] = {"logprobs": target_logprobs.detach().numpy()}
    return Evaluation(float(loss), _num_targets(targets), outputs, None, gradient_MK, returned.metrics)


def summarise(call: LossCall, evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """Metrics of a request; `:mean` is over datums, so that the client's merge of chunks is exact."""
    metrics = {
        "loss:sum": math.fsum(evaluation.loss for evaluation in evaluations),
        "tokens:sum": float(sum(evaluation.num_tokens for evaluation in evaluations)),
    }
    statistics = [evaluation.statistics for evaluation in evaluations if evaluation.statistics is not None]
    if call.spec.is_rl and statistics:
        metrics["ratio:mean"] = math.fsum(each.mean_ratio for each in statistics) / len(statistics)
        metrics["ratio:max"] = max(each.max_ratio for each in statistics)
        metrics["kl:mean"] = math.fsum(each.mean_kl for each in statistics) / len(statistics)
        metrics["clip_fraction:mean"] = math.fsum(each.clip_fraction for each in statistics) / len(statistics)
    for name in evaluations[0].metrics if evaluations else ():
        # sum, not fsum: these may be infinite.
        total = sum(evaluation.metrics[name] for evaluation in evaluations)
        metrics[name] = total / len(evaluations) if name.endswith(":mean") else total
    return metrics


def _statistics(x: PolicyInputs, terms: PolicyTerms) -> PolicyStatistics:
    counts_N = x.advantages != 0
    if not counts_N.any():
        return PolicyStatistics()
    ratio = terms.ratio[counts_N]
    kl = (x.sampling_logprobs - x.target_logprobs)[counts_N]
    return PolicyStatistics(
        float(ratio.mean()), float(ratio.max()), float(kl.mean()), float(terms.is_clipped[counts_N].mean())
    )


def _at_targets(gradient: Float64[Reals, "N ..."], targets: Targets) -> Float32[Tensor, "M K"]:
    """The gradient of the rows that have a target."""
    gradient_NK = gradient.reshape(gradient.shape[0], -1).astype(np.float32)
    gradient_MK = gradient_NK if len(targets.rows_M) == len(gradient_NK) else gradient_NK[targets.rows_M]
    _require_finite(gradient_MK, _GRADIENT, "user")
    return torch.from_numpy(gradient_MK)


def _num_targets(targets: Targets) -> int:
    return int(np.count_nonzero(targets.ids_MK >= 0))


def _require_finite(values: float | NDArray[np.floating[Any]], what: str, category: ErrorCategory) -> None:
    if not np.isfinite(values).all():
        raise RequestFailed(f"{what} is not finite", category)
