"""The built-in losses as pure functions of one datum; formulas and reasons are in docs/losses.md.

Legend: N tokens of the datum, K targets of one token, Q sampled sequences. All reductions are sums:
clients choose the normalisation through weights and advantages, and a sum does not change with packing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PolicyInputs:
    """What every policy-gradient loss sees of one datum."""

    target_logprobs: Float[Tensor, " N"]  # under the adapter being trained; carries gradient
    sampling_logprobs: Float[Tensor, " N"]  # under the weights that sampled the tokens
    advantages: Float[Tensor, " N"]
    clip_low: Float[Tensor, " N"]  # absolute ratios, not epsilons
    clip_high: Float[Tensor, " N"]
    in_sequence_N: Bool[Tensor, " N"]  # tokens that form sequence ratios
    sequence_index_N: Int64[Tensor, " N"]  # in [0, num_sequences); read only where in_sequence_N
    num_sequences: int
    settings: Mapping[str, float]  # every key of the loss's LossSpec.settings


@dataclass(frozen=True, slots=True)
class PolicyTerms:
    """A loss with what its outputs and metrics are made of; only `loss` carries gradient."""

    loss: Float[Tensor, ""]
    ratio: Float[Tensor, " N"]  # the ratio the loss used, before clipping
    is_clipped: Bool[Tensor, " N"]  # tokens whose gradient a bound removed or limited


PolicyLoss = Callable[[PolicyInputs], PolicyTerms]


def cross_entropy(target_logprobs: Float[Tensor, "N *K"], weights: Float[Tensor, "N *K"]) -> Float[Tensor, ""]:
    """Weighted negative log-likelihood; both in the shape of the targets."""
    return -(weights * target_logprobs).sum()


def importance_sampling(x: PolicyInputs) -> PolicyTerms:
    """Policy gradient, corrected for sampler weights that lag the trainer."""
    ratio = torch.exp(x.target_logprobs - x.sampling_logprobs)
    return PolicyTerms(-(ratio * x.advantages).sum(), ratio.detach(), _none(ratio))


def ppo(x: PolicyInputs) -> PolicyTerms:
    """The pessimistic of the plain and the clipped objective, token by token."""
    ratio = torch.exp(x.target_logprobs - x.sampling_logprobs)
    return _pessimistic(ratio, x)


def cispo(x: PolicyInputs) -> PolicyTerms:
    """REINFORCE weighted by the clipped ratio: no token loses its gradient."""
    ratio = torch.exp(x.target_logprobs.detach() - x.sampling_logprobs)
    weight = torch.clamp(ratio, x.clip_low, x.clip_high)
    loss = -(weight * x.target_logprobs * x.advantages).sum()
    return PolicyTerms(loss, ratio, weight != ratio)


def dro(x: PolicyInputs) -> PolicyTerms:
    """Log-likelihood times soft advantage, held near the sampler by a quadratic penalty."""
    log_ratio = x.target_logprobs - x.sampling_logprobs
    penalty = 0.5 * x.settings["beta"] * log_ratio**2
    ratio = torch.exp(log_ratio.detach())
    return PolicyTerms(-(x.target_logprobs * x.advantages - penalty).sum(), ratio, _none(ratio))


def gspo(x: PolicyInputs) -> PolicyTerms:
    """PPO with one ratio for the whole datum: the geometric mean over its masked tokens.

    Each token carries the value of that ratio and the gradient of its own log-probability
    (GSPO-token), so that advantages may differ between tokens.
    """
    log_ratio = (x.target_logprobs - x.sampling_logprobs).detach()
    sequence_ratio = torch.exp(log_ratio[x.in_sequence_N].mean()) if bool(x.in_sequence_N.any()) else torch.ones(())
    ratio = sequence_ratio * torch.exp(x.target_logprobs - x.target_logprobs.detach())
    return _pessimistic(ratio, x)


def stable_reinforce(x: PolicyInputs) -> PolicyTerms:
    """REINFORCE with truncated weights that leaves out sequences which drifted too far.

    A sequence takes part when the geometric mean of its ratios is within the settings' bounds;
    its tokens are weighted by min(ratio, ratio_cap) and held near the sampler by a quadratic penalty.
    """
    log_ratio = x.target_logprobs - x.sampling_logprobs
    ratio = torch.exp(log_ratio.detach())
    is_near_N = _near_sequences(log_ratio.detach(), x)
    weight = torch.clamp(ratio, max=x.settings["ratio_cap"])
    objective = weight * x.target_logprobs * x.advantages - 0.5 * x.settings["kl_coeff"] * log_ratio**2
    is_clipped = x.in_sequence_N & (~is_near_N | (weight != ratio))
    return PolicyTerms(-objective[is_near_N].sum(), ratio, is_clipped)


def _pessimistic(ratio: Float[Tensor, " N"], x: PolicyInputs) -> PolicyTerms:
    plain = ratio * x.advantages
    clipped = torch.clamp(ratio, x.clip_low, x.clip_high) * x.advantages
    loss = -torch.minimum(plain, clipped).sum()
    return PolicyTerms(loss, ratio.detach(), (clipped < plain).detach())


def _near_sequences(log_ratio: Float[Tensor, " N"], x: PolicyInputs) -> Bool[Tensor, " N"]:
    """Tokens of the sequences whose mean log-ratio is within the bounds."""
    index = x.sequence_index_N[x.in_sequence_N]
    totals = torch.zeros(x.num_sequences, dtype=log_ratio.dtype).index_add(0, index, log_ratio[x.in_sequence_N])
    counts = torch.bincount(index, minlength=x.num_sequences).clamp(min=1)
    mean_ratio_Q = torch.exp(totals / counts)
    is_near_Q = (mean_ratio_Q >= x.settings["sequence_ratio_low"]) & (mean_ratio_Q <= x.settings["sequence_ratio_high"])
    is_near_N = x.in_sequence_N.clone()
    is_near_N[x.in_sequence_N] = is_near_Q[index]
    return is_near_N


def _none(ratio: Float[Tensor, " N"]) -> Bool[Tensor, " N"]:
    return torch.zeros_like(ratio, dtype=torch.bool)


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
