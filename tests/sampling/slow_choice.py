"""The slow twin of choosing a token: one row, plain Python, the definitions as they stand in the literature."""

import math
from collections.abc import Sequence

from openrl.sampling.base import SamplingOptions


def penalised_logits(
    logits: Sequence[float], prompt: Sequence[int], output: Sequence[int], options: SamplingOptions
) -> list[float]:
    """Keskar et al. 2019 as in vLLM, then OpenAI's two."""
    result: list[float] = []
    for token, logit in enumerate(logits):
        if token in prompt or token in output:
            factor = options.repetition_penalty
            logit = logit / factor if logit > 0 else logit * factor
        count = list(output).count(token)
        result.append(logit - count * options.frequency_penalty - (count > 0) * options.presence_penalty)
    return result


def distribution(
    logits: Sequence[float], prompt: Sequence[int], output: Sequence[int], options: SamplingOptions
) -> list[float]:
    """The probability that each token is chosen."""
    logits = penalised_logits(logits, prompt, output, options)
    likeliest = max(range(len(logits)), key=lambda token: (logits[token], -token))
    if options.temperature == 0.0:
        return [float(token == likeliest) for token in range(len(logits))]
    weights = [math.exp((logit - logits[likeliest]) / options.temperature) for logit in logits]
    weights = [weight if weight >= options.min_p else 0.0 for weight in weights]
    order = sorted(range(len(weights)), key=lambda token: (-weights[token], token))
    kept = order[: options.top_k] if options.top_k > 0 else order
    wanted = options.top_p * sum(weights[token] for token in kept)
    nucleus: list[int] = []
    for token in kept:
        if nucleus and sum(weights[each] for each in nucleus) >= wanted:
            break
        nucleus.append(token)
    total = sum(weights[token] for token in nucleus)
    return [weights[token] / total if token in nucleus else 0.0 for token in range(len(weights))]


def choose(probabilities: Sequence[float], uniform: float, is_ranked: bool) -> int:
    """Inverse CDF: in the order of token ids, or likeliest first where top-k or top-p cut the distribution."""
    order = range(len(probabilities))
    ranked = sorted(order, key=lambda token: (-probabilities[token], token)) if is_ranked else order
    total = 0.0
    for token in ranked:
        total += probabilities[token]
        if total > uniform:
            return token
    return max(token for token in order if probabilities[token])
