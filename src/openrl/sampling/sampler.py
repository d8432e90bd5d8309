"""Chooses one token per row from logits.

Legend: M rows, V vocab, P parts of the vocab, K likeliest tokens.

A choice is a function of the row's logits, its options and its uniform number: inverse-CDF sampling,
whole batch at once. Log-probabilities are of the full tempered distribution, before top-k and top-p.
At temperature 0 the likeliest token is taken and log-probabilities are those at temperature 1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

PART = 512
"""Tokens summed together before the search for the sampled one narrows down."""

CHUNK_BYTES = 2**22
"""Logits taken at once on CPU: what is computed from them stays in its caches."""

TINY_TEMPERATURE = 1e-2
"""Below, logits are shifted before they are divided, so that the quotient cannot overflow."""


@dataclass(frozen=True, slots=True)
class Choices:
    """How each row chooses; on the host."""

    temperature: Float32[Tensor, " M"]
    top_k: Int64[Tensor, " M"]  # 0: all
    top_p: Float64[Tensor, " M"]
    uniform: Float64[Tensor, " M"]  # in (0, 1)

    @property
    def is_greedy(self) -> Bool[Tensor, " M"]:
        """Which rows take the likeliest token."""
        return (self.temperature == 0.0) | (self.top_k == 1)

    def take(self, index: Tensor | slice) -> "Choices":
        """Those of some of the rows."""
        return Choices(self.temperature[index], self.top_k[index], self.top_p[index], self.uniform[index])


def row_chunks(logits: Sequence[Float[Tensor, "_ V"]]) -> Iterator[Float[Tensor, "C V"]]:
    """All rows in order, as many at once as the device likes."""
    for logits_MV in logits:
        whole = logits_MV.shape[0] if logits_MV.is_cuda else CHUNK_BYTES // (4 * logits_MV.shape[1])
        yield from logits_MV.split(max(whole, 1))


def tempered_logprobs(logits_MV: Float[Tensor, "M V"], temperature: Float32[Tensor, " M"]) -> Float[Tensor, "M V"]:
    """fp32 log softmax(logits / temperature); temperature 0 counts as 1."""
    divisor = torch.where(temperature == 0.0, 1.0, temperature)
    tiny = (divisor < TINY_TEMPERATURE).nonzero()[:, 0].to(logits_MV.device)
    if tiny.numel():
        logits_MV = logits_MV.clone()
        rows = logits_MV[tiny]
        logits_MV[tiny] = rows - rows.amax(-1, keepdim=True)
    if bool((divisor != 1.0).any()):
        logits_MV = logits_MV / divisor.to(logits_MV.device)[:, None]
    return torch.log_softmax(logits_MV, -1)


def choose_tokens(logprobs_MV: Float[Tensor, "M V"], choices: Choices) -> Int64[Tensor, " M"]:
    """One token per row of tempered log-probabilities; rows with NaN give some token."""
    tokens_M = torch.empty(logprobs_MV.shape[0], dtype=torch.int64, device=logprobs_MV.device)
    is_greedy = choices.is_greedy
    is_cut = ~is_greedy & ((choices.top_k > 0) | (choices.top_p < 1.0))
    for rows, choose in ((is_greedy, _likeliest), (is_cut, _from_cut), (~is_greedy & ~is_cut, _from_all)):
        index = rows.nonzero()[:, 0]
        if index.numel():
            # Rows without company are the common case: no copy of [M, V] then.
            part_MV = logprobs_MV if index.numel() == rows.numel() else logprobs_MV[index.to(logprobs_MV.device)]
            tokens_M[index.to(tokens_M.device)] = choose(part_MV, choices.take(index))
    return tokens_M


def _likeliest(logprobs_MV: Tensor, choices: Choices) -> Tensor:
    """The likeliest token; of equals the lowest id, as in a stable sort."""
    del choices
    best_M1 = logprobs_MV.amax(-1, keepdim=True)
    ids_V = torch.arange(logprobs_MV.shape[1], device=logprobs_MV.device)
    chosen_M = torch.where(logprobs_MV == best_M1, ids_V, logprobs_MV.shape[1]).amin(-1)
    return chosen_M.clamp_(max=logprobs_MV.shape[1] - 1)


def _from_all(logprobs_MV: Tensor, choices: Choices) -> Tensor:
    """Inverse CDF over the vocab in two levels: which part, then which token of it."""
    num_rows, vocab = logprobs_MV.shape
    weights_MV = torch.exp(logprobs_MV)
    if vocab % PART:
        weights_MV = torch.nn.functional.pad(weights_MV, (0, -vocab % PART))
    weights_MPV = weights_MV.view(num_rows, -1, PART)
    # A sum in fp64 would turn every weight into fp64 first, at four times the cost of the draw.
    part_sums_MP = weights_MPV.sum(-1).double()
    cumulative_MP = part_sums_MP.cumsum(-1)
    wanted_M = choices.uniform.to(logprobs_MV.device) * cumulative_MP[:, -1]
    part_M = _first_above(cumulative_MP, wanted_M)
    rows_M = torch.arange(num_rows, device=logprobs_MV.device)
    before_M = cumulative_MP[rows_M, part_M] - part_sums_MP[rows_M, part_M]
    weights_MV = weights_MPV[rows_M, part_M].double()
    # Rounding may leave slightly less than nothing; zero skips tokens without weight.
    left_M = (wanted_M - before_M).clamp_(min=0.0)
    token_M = _first_above(weights_MV.cumsum(-1), left_M, _last_positive(weights_MV))
    return (part_M * PART + token_M).clamp_(max=vocab - 1)


def _from_cut(logprobs_MV: Tensor, choices: Choices) -> Tensor:
    """Top-k first, then the smallest set of what is left that reaches top-p, renormalised."""
    sorted_MV, ids_MV = torch.sort(logprobs_MV, dim=-1, descending=True, stable=True)
    weights_MV = torch.exp(sorted_MV.double())
    ranks_V = torch.arange(weights_MV.shape[1], device=weights_MV.device)
    top_k_M1 = choices.top_k.to(weights_MV.device)[:, None]
    weights_MV = weights_MV.masked_fill((top_k_M1 > 0) & (ranks_V >= top_k_M1), 0.0)
    cumulative_MV = weights_MV.cumsum(-1)
    nucleus_M1 = choices.top_p.to(weights_MV.device)[:, None] * cumulative_MV[:, -1:]
    # A token stays if those before it have not reached top-p; the first one always does.
    is_out_MV = (cumulative_MV - weights_MV >= nucleus_M1) & (ranks_V > 0)
    weights_MV = weights_MV.masked_fill(is_out_MV, 0.0)
    cumulative_MV = weights_MV.cumsum(-1)
    wanted_M = choices.uniform.to(weights_MV.device) * cumulative_MV[:, -1]
    rank_M = _first_above(cumulative_MV, wanted_M, _last_positive(weights_MV))
    return ids_MV.gather(1, rank_M[:, None])[:, 0]


def _first_above(cumulative_MV: Tensor, wanted_M: Tensor, last_M: Tensor | None = None) -> Tensor:
    """The first index whose running sum exceeds the wanted mass, at most `last_M` (rounding may overshoot)."""
    index_M = (cumulative_MV <= wanted_M[:, None]).sum(-1)
    return torch.minimum(index_M, _last_positive_of_sums(cumulative_MV) if last_M is None else last_M)


def _last_positive(weights_MV: Tensor) -> Tensor:
    """The last index with any weight."""
    ids_V = torch.arange(weights_MV.shape[1], device=weights_MV.device)
    return torch.where(weights_MV > 0.0, ids_V, 0).amax(-1)


def _last_positive_of_sums(cumulative_MV: Tensor) -> Tensor:
    """The first index that reaches the total: nothing comes after it."""
    return (cumulative_MV < cumulative_MV[:, -1:]).sum(-1).clamp_(max=cumulative_MV.shape[1] - 1)


def likeliest_tokens(logprobs_MV: Float[Tensor, "M V"], k: int) -> tuple[Int64[Tensor, "M K"], Float[Tensor, "M K"]]:
    """The k likeliest tokens of each row and their log-probabilities, likeliest first."""
    values_MK, ids_MK = torch.topk(logprobs_MV, min(k, logprobs_MV.shape[1]), dim=-1)
    return ids_MK, values_MK
