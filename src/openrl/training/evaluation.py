"""Evaluates a loss on one datum: its value, outputs, statistics and the gradient of its log-probabilities.

Losses are computed in float64 on the host, datum by datum: log-probabilities are few, and a datum's
numbers must not depend on its neighbours. A client's own loss is computed in float32, as it was traced.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from openrl.errors import ErrorCategory, RequestFailed
from openrl.protocol.custom_loss import CustomLoss
from openrl.protocol.datum import Datum, DenseArray
from openrl.protocol.losses import LossSpec
from openrl.training.custom_loss import custom_gradient, run_custom_loss
from openrl.training.loss_inputs import Targets, read_custom_inputs, read_policy_inputs, read_weights
from openrl.training.losses import POLICY_LOSSES, PolicyInputs, PolicyTerms, cross_entropy


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

    A gradient needs autograd to be on. Raises InvalidRequest for inputs that do not fit, and RequestFailed
    for numbers that are not finite.
    """
    _require_finite(logprobs_MK, "a log-probability", "server")
    leaf_MK = logprobs_MK.to(torch.float32 if call.custom else torch.float64, copy=True).requires_grad_(with_gradient)
    target_logprobs = targets.spread(leaf_MK)
    outputs: dict[str, DenseArray] = {"logprobs": target_logprobs.detach().float().numpy()}
    statistics: PolicyStatistics | None = None
    metrics: Mapping[str, float] = {}
    if call.custom is not None:
        returned = run_custom_loss(call.custom, read_custom_inputs(datum, call.custom, target_logprobs))
        loss, metrics = returned.loss, returned.metrics
    elif call.spec.is_rl:
        inputs = read_policy_inputs(datum, call.spec, call.settings, target_logprobs)
        terms = POLICY_LOSSES[call.spec.name](inputs)
        loss, statistics = terms.loss, _statistics(inputs, terms)
        outputs["ratio"] = terms.ratio.float().numpy()
    else:
        loss = cross_entropy(target_logprobs, read_weights(datum, targets))
    _require_finite(loss.detach(), "the loss", "user")
    gradient_MK = _gradient(call, loss, leaf_MK) if with_gradient else None
    num_targets = int((targets.ids_MK >= 0).sum())
    return Evaluation(float(loss.detach()), num_targets, outputs, statistics, gradient_MK, metrics)


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
    if not bool(counts_N.any()):
        return PolicyStatistics()
    ratio = terms.ratio[counts_N]
    kl = (x.sampling_logprobs - x.target_logprobs.detach())[counts_N]
    clipped = terms.is_clipped[counts_N].double()
    return PolicyStatistics(float(ratio.mean()), float(ratio.max()), float(kl.mean()), float(clipped.mean()))


def _gradient(call: LossCall, loss: Float[Tensor, ""], leaf_MK: Float[Tensor, "M K"]) -> Float32[Tensor, "M K"]:
    if call.custom is not None:
        gradient_MK = custom_gradient(call.custom, loss, leaf_MK)
    elif loss.requires_grad:
        (gradient_MK,) = torch.autograd.grad(loss, leaf_MK)
    else:  # nothing in the datum has a target
        return torch.zeros_like(leaf_MK, dtype=torch.float32)
    gradient_MK = gradient_MK.float()
    _require_finite(gradient_MK, "the gradient of a log-probability", "user")
    return gradient_MK


def _require_finite(values: Tensor, what: str, category: ErrorCategory) -> None:
    if not bool(torch.isfinite(values).all()):
        raise RequestFailed(f"{what} is not finite", category)
