"""Every loss and its gradient written out token by token in Python floats: slow and obviously right."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tokens:
    """One datum as plain lists; `sequence`: the sampled sequence of each token, None on prompt tokens."""

    p: Sequence[float]
    q: Sequence[float]
    advantages: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    sequence: Sequence[str | None]


def reference(name: str, x: Tokens, settings: Mapping[str, float]) -> tuple[float, list[float]]:
    """Loss and d loss / d p of each token."""
    places = range(len(x.p))
    ratios = [math.exp(x.p[t] - x.q[t]) for t in places]
    if name == "importance_sampling":
        terms = [(ratios[t] * x.advantages[t], ratios[t] * x.advantages[t]) for t in places]
    elif name == "ppo":
        terms = [_pessimistic(ratios[t], x, t) for t in places]
    elif name == "cispo":
        weights = [min(max(ratios[t], x.low[t]), x.high[t]) * x.advantages[t] for t in places]
        terms = [(weights[t] * x.p[t], weights[t]) for t in places]
    elif name == "dro":
        beta = settings["beta"]
        terms = [
            (x.p[t] * x.advantages[t] - beta / 2 * (x.p[t] - x.q[t]) ** 2, x.advantages[t] - beta * (x.p[t] - x.q[t]))
            for t in places
        ]
    elif name == "gspo":
        masked = [t for t in places if x.sequence[t] is not None]
        ratio = math.exp(sum(x.p[t] - x.q[t] for t in masked) / len(masked))
        terms = [_pessimistic(ratio, x, t) for t in places]
    else:
        terms = [_stable(x, t, settings) for t in places]
    return -sum(objective for objective, _ in terms), [-slope for _, slope in terms]


def _pessimistic(ratio: float, x: Tokens, t: int) -> tuple[float, float]:
    plain = ratio * x.advantages[t]
    clipped = min(max(ratio, x.low[t]), x.high[t]) * x.advantages[t]
    return (clipped, 0.0) if clipped < plain else (plain, plain)


def _stable(x: Tokens, t: int, settings: Mapping[str, float]) -> tuple[float, float]:
    if x.sequence[t] is None:
        return 0.0, 0.0
    same = [i for i in range(len(x.p)) if x.sequence[i] == x.sequence[t]]
    mean_ratio = math.exp(sum(x.p[i] - x.q[i] for i in same) / len(same))
    if not settings["sequence_ratio_low"] <= mean_ratio <= settings["sequence_ratio_high"]:
        return 0.0, 0.0
    log_ratio = x.p[t] - x.q[t]
    weight = min(math.exp(log_ratio), settings["ratio_cap"]) * x.advantages[t]
    objective = weight * x.p[t] - settings["kl_coeff"] / 2 * log_ratio**2
    return objective, weight - settings["kl_coeff"] * log_ratio
