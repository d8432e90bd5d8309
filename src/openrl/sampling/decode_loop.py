"""Decodes several tokens of many sequences without a look at them in between: the interface and its slow twin.

Legend: B sequences, V vocab, K steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from openrl.sampling.batcher import Slice
from openrl.sampling.model_runner import ModelRunner, row_ranges
from openrl.sampling.sampler import Choices, choose_tokens, row_chunks, tempered_logprobs
from openrl.sampling.sequence import Sequence as SampledSequence


@dataclass(frozen=True, slots=True)
class Burst:
    """Sequences that decode together, sorted by slot; their blocks hold what the steps write."""

    sequences: Sequence[SampledSequence]
    slots: Sequence[int]
    num_tokens: Sequence[int]  # that each sequence takes, at most one a step; it pauses after them
    choices: Choices  # plain ones; their uniform numbers are not used
    uniform_KB: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BurstTokens:
    """What a burst chose; entries beyond a sequence's `num_tokens` mean nothing."""

    tokens_KB: NDArray[np.int64]
    logprobs_KB: NDArray[np.float32]


class DecodeLoop(Protocol):
    """Runs bursts; writes keys and values to the cache and leaves the sequences as they are."""

    takes_single_steps: bool
    """Whether a burst of one step costs less than a step of the engine's own."""

    def run(self, burst: Burst) -> BurstTokens:
        """The tokens that single steps would choose."""
        ...

    def logits(self, sequences: Sequence[SampledSequence], slots: Sequence[int]) -> Float[Tensor, "B V"] | None:
        """fp32 logits after the last token of each, until the next call; None: the model runner is as good."""
        ...


class SteppedLoop:
    """One forward pass after the other through the model runner."""

    takes_single_steps = False

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner

    def run(self, burst: Burst) -> BurstTokens:
        copies = [replace(sequence, tokens=list(sequence.tokens)) for sequence in burst.sequences]
        tokens_KB = np.zeros(burst.uniform_KB.shape, np.int64)
        logprobs_KB = np.zeros(burst.uniform_KB.shape, np.float32)
        for step, uniform_B in enumerate(burst.uniform_KB):
            rows = [row for row, num_tokens in enumerate(burst.num_tokens) if step < num_tokens]
            chosen = burst.choices.take(torch.tensor(rows))
            uniform = torch.from_numpy(uniform_B[rows])
            choices = Choices(chosen.temperature, chosen.top_k, chosen.top_p, uniform)
            sequences = [copies[row] for row in rows]
            found = self._step(sequences, [burst.slots[row] for row in rows], choices)
            for row, sequence, (token, logprob) in zip(rows, sequences, found, strict=True):
                sequence.tokens.append(token)
                tokens_KB[step, row], logprobs_KB[step, row] = token, logprob
        return BurstTokens(tokens_KB, logprobs_KB)

    def logits(self, sequences: Sequence[SampledSequence], slots: Sequence[int]) -> None:
        del sequences, slots

    def _step(
        self, sequences: Sequence[SampledSequence], slots: Sequence[int], choices: Choices
    ) -> list[tuple[int, float]]:
        slices = [Slice(sequence, len(sequence.tokens) - 1, 1) for sequence in sequences]
        hidden_TD = self._runner.hidden(slices, slots)
        logits_BV = self._runner.logits(hidden_TD, row_ranges(slices, slots))
        found: list[tuple[int, float]] = []
        for logits_CV in row_chunks([logits_BV]):
            chosen = choices.take(slice(len(found), len(found) + logits_CV.shape[0]))
            logprobs_CV = tempered_logprobs(logits_CV, chosen.temperature)
            tokens_C = choose_tokens(logprobs_CV, chosen)
            logprobs_C = logprobs_CV.gather(1, tokens_C[:, None])[:, 0]
            found += zip(tokens_C.tolist(), logprobs_C.tolist(), strict=True)
        return found
