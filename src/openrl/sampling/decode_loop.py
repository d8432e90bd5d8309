"""Decodes several tokens of many sequences, a step ahead of who looks at them: the interface and its slow twin.

Legend: B sequences, V vocab, K steps.
"""

from collections.abc import Callable, Iterator, Sequence
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
class StepTokens:
    """What one step of a burst chose; entries of sequences that have taken their `num_tokens` mean nothing."""

    tokens_B: NDArray[np.int64]
    logprobs_B: NDArray[np.float32]


GoesOn = Callable[[], bool]


class DecodeLoop(Protocol):
    """Runs bursts; writes keys and values to the cache and leaves the sequences as they are."""

    takes_single_steps: bool
    """Whether a burst of one step costs less than a step of the engine's own."""

    def run(self, burst: Burst, goes_on: GoesOn) -> Iterator[StepTokens]:
        """The tokens that single steps would choose, step after step.

        `goes_on` is asked before each step but the first. At most one step is under way while the one before it is
        looked at; it is still handed out when the answer is no.
        """
        ...

    def logits(self, sequences: Sequence[SampledSequence], slots: Sequence[int]) -> Float[Tensor, "B V"] | None:
        """fp32 logits after the last token of each, until the next call; None: the model runner is as good."""
        ...

    def slice_logits(self, slices: Sequence[Slice], slots: Sequence[int]) -> Float[Tensor, "T V"] | None:
        """fp32 logits of all rows of the slices, until the next call; None: the model runner is as good."""
        ...


class SteppedLoop:
    """One forward pass after the other through the model runner."""

    takes_single_steps = False

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner

    def run(self, burst: Burst, goes_on: GoesOn) -> Iterator[StepTokens]:
        copies = [replace(sequence, tokens=list(sequence.tokens)) for sequence in burst.sequences]
        for step, uniform_B in enumerate(burst.uniform_KB):
            if step and not goes_on():
                return
            chosen_B = StepTokens(np.zeros(len(copies), np.int64), np.zeros(len(copies), np.float32))
            rows = [row for row, num_tokens in enumerate(burst.num_tokens) if step < num_tokens]
            chosen = burst.choices.take(torch.tensor(rows))
            uniform = torch.from_numpy(uniform_B[rows])
            choices = Choices(chosen.temperature, chosen.top_k, chosen.top_p, uniform)
            sequences = [copies[row] for row in rows]
            found = self._step(sequences, [burst.slots[row] for row in rows], choices)
            for row, sequence, (token, logprob) in zip(rows, sequences, found, strict=True):
                sequence.tokens.append(token)
                chosen_B.tokens_B[row], chosen_B.logprobs_B[row] = token, logprob
            yield chosen_B

    def logits(self, sequences: Sequence[SampledSequence], slots: Sequence[int]) -> None:
        del sequences, slots

    def slice_logits(self, slices: Sequence[Slice], slots: Sequence[int]) -> None:
        del slices, slots

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
