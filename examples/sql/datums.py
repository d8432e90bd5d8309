"""Turns questions and sampled queries into training datums."""

from collections.abc import Sequence
from dataclasses import dataclass

import tinker
from tokenizers import Tokenizer

from .questions import Question


@dataclass(frozen=True, slots=True)
class Codec:
    """Text to tokens and back, the same way in training and in sampling."""

    tokenizer: Tokenizer

    def prompt(self, question: Question) -> list[int]:
        """The prompt with the tokenizer's first token, if it has one."""
        return self.tokenizer.encode(question.prompt).ids

    def completion(self, question: Question) -> list[int]:
        """The gold answer; encoded apart from the prompt, because that is how the model will write it."""
        return self.tokenizer.encode(question.completion, add_special_tokens=False).ids

    def text(self, tokens: Sequence[int]) -> str:
        """What the model wrote."""
        return self.tokenizer.decode(list(tokens))


def supervised_datum(prompt: list[int], completion: list[int]) -> tinker.Datum:
    """Teaches the completion; the prompt has weight 0."""
    tokens = prompt + completion
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": _token_ids(tokens[1:]),
            "weights": _numbers([0.0] * (len(prompt) - 1) + [1.0] * len(completion)),
        },
    )


def reinforcement_datum(prompt: list[int], sample: tinker.SampledSequence, advantage: float) -> tinker.Datum:
    """Makes the sampled tokens likelier (advantage > 0) or less likely; the prompt has advantage 0."""
    tokens = prompt + list(sample.tokens)
    padding = [0.0] * (len(prompt) - 1)
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": _token_ids(tokens[1:]),
            "logprobs": _numbers(padding + list(sample.logprobs or ())),
            "advantages": _numbers(padding + [advantage] * len(sample.tokens)),
        },
    )


def _token_ids(values: list[int]) -> tinker.TensorData:
    return tinker.TensorData(data=values, dtype="int64", shape=[len(values)])


def _numbers(values: list[float]) -> tinker.TensorData:
    return tinker.TensorData(data=values, dtype="float32", shape=[len(values)])
