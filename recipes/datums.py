"""Turns token sequences into training datums."""

import statistics
from collections.abc import Sequence

import tinker


def supervised(prompt: list[int], completion: list[int]) -> tinker.Datum:
    """Teaches the completion; the prompt has weight 0."""
    tokens = prompt + completion
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": token_ids(tokens[1:]),  # what should follow each token
            "weights": numbers([0.0] * (len(prompt) - 1) + [1.0] * len(completion)),
        },
    )


def reinforced(prompt: list[int], sample: tinker.SampledSequence, advantage: float) -> tinker.Datum:
    """Makes the sampled tokens likelier (advantage > 0) or less likely; the prompt has advantage 0."""
    return reinforced_tokens(prompt, list(sample.tokens), list(sample.logprobs or ()), [advantage] * len(sample.tokens))


def reinforced_tokens(
    prompt: list[int], sampled: list[int], logprobs: Sequence[float], advantages: Sequence[float]
) -> tinker.Datum:
    """The same with an advantage for every token after the prompt; `logprobs` are the sampler's."""
    tokens, padding = prompt + sampled, [0.0] * (len(prompt) - 1)
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": token_ids(tokens[1:]),
            "logprobs": numbers([*padding, *logprobs]),
            "advantages": numbers([*padding, *advantages]),
        },
    )


def group_advantages(rewards: Sequence[float]) -> list[float] | None:
    """Rewards relative to the mean of their group, in units of its spread; None if all are equal: nothing to learn."""
    mean, spread = statistics.fmean(rewards), statistics.pstdev(rewards)
    return [(reward - mean) / spread for reward in rewards] if spread > 1e-6 else None


def token_ids(values: Sequence[int]) -> tinker.TensorData:
    """Tokens of a datum."""
    return tinker.TensorData(data=list(values), dtype="int64", shape=[len(values)])


def numbers(values: Sequence[float]) -> tinker.TensorData:
    """Weights, log-probabilities or advantages of a datum."""
    return tinker.TensorData(data=list(values), dtype="float32", shape=[len(values)])
