"""What penalties and min-p make of a row before its token is chosen.

Legend: M rows, R processed rows, V vocab, N tokens that the processed rows hold, each once a row.

In this order, as in vLLM: repetition, frequency and presence penalty on the logits, temperature, min-p; top-k and
top-p follow (sampler.py). None of it shows in the log-probabilities that are reported: those stay the model's.

* repetition penalty θ: Keskar et al. 2019, "CTRL", section 4.1, in the form of transformers and vLLM: logits of tokens
  that prompt or output hold are divided by θ where they are positive, else multiplied.
* frequency and presence penalty: OpenAI's API reference. A token that occurs c > 0 times in the output, the prompt
  apart, loses c * frequency + presence.
* min-p: Nguyen et al. 2024, "Turning Up the Heat". Tokens stay that have at least min_p times the probability of the
  likeliest one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from openrl.sampling.base import SamplingOptions
from openrl.sampling.sampler import tempered_logprobs
from openrl.sampling.token_history import TokenHistory


@dataclass(frozen=True, slots=True)
class HeldTokens:
    """Tokens of several rows, one entry for each token of a row."""

    row: Int64[Tensor, " N"]  # among the processed ones
    token: Int64[Tensor, " N"]

    def to(self, device: torch.device) -> "HeldTokens":
        """The same on a device."""
        return HeldTokens(self.row.to(device), self.token.to(device))


@dataclass(frozen=True, slots=True)
class Processing:
    """What is to be done to the rows that ask for it; on the host."""

    rows: Int64[Tensor, " R"]  # among all rows of the step
    min_p: Float32[Tensor, " R"]
    repeated: HeldTokens
    repetition: Float32[Tensor, " N"]  # penalty of each repeated token's row
    generated: HeldTokens
    loss: Float32[Tensor, " N"]  # what frequency and presence take from each generated token


def processing_of(
    rows: Sequence[int], options: Sequence[SamplingOptions], histories: Sequence[TokenHistory | None]
) -> Processing:
    """For the rows of a step with these numbers, options and histories (None: no penalties)."""
    repeated_ids: list[np.ndarray] = []
    generated_ids: list[np.ndarray] = []
    losses: list[np.ndarray] = []
    nothing = np.empty(0, np.int64)
    for option, history in zip(options, histories, strict=True):
        repeated_ids.append(nothing if history is None or option.repetition_penalty == 1.0 else history.held)
        ids, counts = (nothing, nothing) if history is None else history.generated
        generated_ids.append(ids)
        losses.append(counts * option.frequency_penalty + option.presence_penalty)
    repeated = _held(repeated_ids)
    repetition = torch.tensor([option.repetition_penalty for option in options], dtype=torch.float32)
    return Processing(
        rows=torch.tensor(rows, dtype=torch.int64),
        min_p=torch.tensor([option.min_p for option in options], dtype=torch.float32),
        repeated=repeated,
        repetition=repetition[repeated.row],
        generated=_held(generated_ids),
        loss=torch.from_numpy(np.concatenate(losses).astype(np.float32)),
    )


def _held(ids: Sequence[np.ndarray]) -> HeldTokens:
    rows = np.repeat(np.arange(len(ids)), [len(each) for each in ids])
    return HeldTokens(torch.from_numpy(rows), torch.from_numpy(np.concatenate(ids)))


def process(
    logits_MV: Float[Tensor, "M V"],
    logprobs_MV: Float[Tensor, "M V"],
    temperature: Float32[Tensor, " M"],
    processing: Processing,
) -> Float[Tensor, "M V"]:
    """The log-probabilities to choose by: `logprobs_MV`, but for the processed rows."""
    rows = processing.rows.to(logits_MV.device)
    if processing.repeated.row.numel() or processing.generated.row.numel():
        processed_RV = tempered_logprobs(penalised(logits_MV[rows], processing), temperature[processing.rows])
    else:
        processed_RV = logprobs_MV[rows]
    processed_RV = without_unlikely(processed_RV, processing.min_p)
    return processed_RV if rows.numel() == logits_MV.shape[0] else logprobs_MV.index_copy(0, rows, processed_RV)


def penalised(logits_RV: Float[Tensor, "R V"], processing: Processing) -> Float[Tensor, "R V"]:
    """The logits after the penalties, in place."""
    device = logits_RV.device
    repeated, generated = processing.repeated.to(device), processing.generated.to(device)
    penalty_N = processing.repetition.to(device)
    logits_N = logits_RV[repeated.row, repeated.token]
    logits_RV[repeated.row, repeated.token] = torch.where(logits_N > 0, logits_N / penalty_N, logits_N * penalty_N)
    logits_RV[generated.row, generated.token] -= processing.loss.to(device)
    return logits_RV


def without_unlikely(logprobs_RV: Float[Tensor, "R V"], min_p: Float32[Tensor, " R"]) -> Float[Tensor, "R V"]:
    """Minus infinity for tokens with less than min_p times the probability of the likeliest, which always stays."""
    floor_R1 = logprobs_RV.amax(-1, keepdim=True) + min_p.log().to(logprobs_RV.device)[:, None]
    return logprobs_RV.masked_fill(logprobs_RV < floor_R1, float("-inf"))
