"""The built-in losses as pure functions of one datum, with gradients; docs/losses.md has formulas and reasons.

Arrays of one value per token are float64. All reductions are sums: clients choose the normalisation through weights
and advantages, and a sum does not change with packing. Gradients are in closed form: autograd takes four times as
long for a few hundred tokens.

Legend: N tokens of the datum, Q sampled sequences.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy.typing import NDArray

if TYPE_CHECKING:
    Reals, Integers, Flags = NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]
else:
    Reals = Integers = Flags = np.ndarray  # jaxtyping takes no generic alias on Python 3.12


@dataclass(frozen=True, slots=True)
class PolicyInputs:
    """What every policy-gradient loss sees of one datum."""

    target_logprobs: Float64[Reals, " N"]  # under the adapter being trained
    sampling_logprobs: Float64[Reals, " N"]  # under the weights that sampled the tokens
    advantages: Float64[Reals, " N"]
    clip_low: Float64[Reals, " N"]  # absolute ratios, not epsilons
    clip_high: Float64[Reals, " N"]
    in_sequence_N: Bool[Flags, " N"]  # tokens that form sequence ratios
    sequence_index_N: Int64[Integers, " N"]  # in [0, num_sequences); read only where in_sequence_N
    num_sequences: int
    settings: Mapping[str, float]  # every key of the loss's LossSpec.settings


@dataclass(frozen=True, slots=True)
class PolicyTerms:
    """A loss with its gradient and what its outputs and metrics are made of."""

    loss: float
    gradient: Float64[Reals, " N"]  # d loss / d target_logprobs
    ratio: Float64[Reals, " N"]  # the ratio the loss used, before clipping
    is_clipped: Bool[Flags, " N"]  # tokens whose gradient a bound removed or limited


PolicyLoss = Callable[[PolicyInputs], PolicyTerms]


def cross_entropy(target_logprobs: Float64[Reals, "N *K"], weights: Float64[Reals, "N *K"]) -> float:
    """Weighted negative log-likelihood, both in the shape of the targets; its gradient is -weights."""
    return -float((weights * target_logprobs).sum())


def importance_sampling(x: PolicyInputs) -> PolicyTerms:
    """Policy gradient, corrected for sampler weights that lag the trainer."""
    ratio = np.exp(x.target_logprobs - x.sampling_logprobs)
    objective = ratio * x.advantages
    return PolicyTerms(-float(objective.sum()), -objective, ratio, _none(ratio))


def ppo(x: PolicyInputs) -> PolicyTerms:
    """The pessimistic of the plain and the clipped objective, token by token."""
    return _pessimistic(np.exp(x.target_logprobs - x.sampling_logprobs), x)


def cispo(x: PolicyInputs) -> PolicyTerms:
    """REINFORCE weighted by the clipped ratio: no token loses its gradient."""
    ratio = np.exp(x.target_logprobs - x.sampling_logprobs)
    weight = np.clip(ratio, x.clip_low, x.clip_high)
    slope = weight * x.advantages
    return PolicyTerms(-float((slope * x.target_logprobs).sum()), -slope, ratio, weight != ratio)


def dro(x: PolicyInputs) -> PolicyTerms:
    """Log-likelihood times soft advantage, held near the sampler by a quadratic penalty."""
    log_ratio = x.target_logprobs - x.sampling_logprobs
    beta = x.settings["beta"]
    objective = x.target_logprobs * x.advantages - 0.5 * beta * log_ratio**2
    ratio = np.exp(log_ratio)
    return PolicyTerms(-float(objective.sum()), beta * log_ratio - x.advantages, ratio, _none(ratio))


def gspo(x: PolicyInputs) -> PolicyTerms:
    """PPO with one ratio for the whole datum: the geometric mean over its masked tokens.

    Each token carries the value of that ratio and the gradient of its own log-probability
    (GSPO-token), so that advantages may differ between tokens.
    """
    log_ratio = (x.target_logprobs - x.sampling_logprobs)[x.in_sequence_N]
    sequence_ratio = np.exp(log_ratio.mean()) if log_ratio.size else 1.0
    return _pessimistic(np.full(x.target_logprobs.shape, sequence_ratio), x)


def stable_reinforce(x: PolicyInputs) -> PolicyTerms:
    """REINFORCE with truncated weights that leaves out sequences which drifted too far.

    A sequence takes part when the geometric mean of its ratios is within the settings' bounds;
    its tokens are weighted by min(ratio, ratio_cap) and held near the sampler by a quadratic penalty.
    """
    log_ratio = x.target_logprobs - x.sampling_logprobs
    ratio = np.exp(log_ratio)
    is_near_N = _near_sequences(log_ratio, x)
    weight = np.minimum(ratio, x.settings["ratio_cap"])
    kl_coeff = x.settings["kl_coeff"]
    slope = weight * x.advantages
    objective = slope * x.target_logprobs - 0.5 * kl_coeff * log_ratio**2
    is_clipped = x.in_sequence_N & (~is_near_N | (weight != ratio))
    gradient = np.where(is_near_N, kl_coeff * log_ratio - slope, 0.0)
    return PolicyTerms(-float(objective[is_near_N].sum()), gradient, ratio, is_clipped)


def _pessimistic(ratio: Float64[Reals, " N"], x: PolicyInputs) -> PolicyTerms:
    plain = ratio * x.advantages
    clipped = np.clip(ratio, x.clip_low, x.clip_high) * x.advantages
    is_clipped = clipped < plain  # never within the bounds: there both are the same
    return PolicyTerms(-float(np.minimum(plain, clipped).sum()), np.where(is_clipped, 0.0, -plain), ratio, is_clipped)


def _near_sequences(log_ratio: Float64[Reals, " N"], x: PolicyInputs) -> Bool[Flags, " N"]:
    """Tokens of the sequences whose mean log-ratio is within the bounds."""
    index = x.sequence_index_N[x.in_sequence_N]
    totals_Q = np.bincount(index, log_ratio[x.in_sequence_N], x.num_sequences)
    counts_Q = np.bincount(index, minlength=x.num_sequences).clip(min=1)
    mean_ratio_Q = np.exp(totals_Q / counts_Q)
    is_near_Q = (mean_ratio_Q >= x.settings["sequence_ratio_low"]) & (mean_ratio_Q <= x.settings["sequence_ratio_high"])
    is_near_N = x.in_sequence_N.copy()
    is_near_N[x.in_sequence_N] = is_near_Q[index]
    return is_near_N


def _none(ratio: Float64[Reals, " N"]) -> Bool[Flags, " N"]:
    return np.zeros(ratio.shape, np.bool_)


POLICY_LOSSES: Mapping[str, PolicyLoss] = MappingProxyType(
    {
        "importance_sampling": importance_sampling,
        "ppo": ppo,
        "cispo": cispo,
        "dro": dro,
        "gspo": gspo,
        "stable_reinforce": stable_reinforce,
    }
)
"""Every loss of protocol.losses.LOSSES that compares with sampling log-probabilities."""
