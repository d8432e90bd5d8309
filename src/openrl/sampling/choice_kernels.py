"""Chooses tokens of plain rows from logits in one pass over them, and a second one over a small part.

Legend: B rows, V vocab, P parts of the vocab.

The first kernel sums the weights of a part of a row's vocabulary, relative to the part's largest logit. The second
finds the part in which the running sum, in fp64, passes the row's uniform number, and in it the token. Logits of any
row that hold NaN or +inf give a log-probability that is not finite.
"""

# Parameters of a kernel carry no types: Triton gives them its own.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

PART = 4096
"""Tokens of one program: 38 or 64 programs a row fill the device from a few rows on."""


@triton.jit
def parts_kernel(
    logits,
    temperature,
    largest,
    sums,
    ids,
    vocab,
    stride_row,
    num_parts,
    PART: tl.constexpr,
):
    """A part's largest logit, its id, and the sum of exp((logit - largest) / temperature)."""
    row = tl.program_id(1).to(tl.int64)
    part = tl.program_id(0)
    columns = part * PART + tl.arange(0, PART)
    x = tl.load(logits + row * stride_row + columns, mask=columns < vocab, other=float("-inf"))
    top = tl.max(x, axis=0)
    index = tl.argmax(x, axis=0, tie_break_left=True)
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp((x - base) / tl.load(temperature + row)), axis=0)
    at = row * num_parts + part
    tl.store(largest + at, top)
    tl.store(sums + at, total)
    tl.store(ids + at, part * PART + index)


@triton.jit
def choose_kernel(
    logits,
    temperature,
    uniform,
    largest,
    sums,
    ids,
    tokens,
    logprobs,
    vocab,
    stride_row,
    num_parts,
    PART: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """The row's token and its log-probability; a negative uniform number asks for the likeliest token."""
    row = tl.program_id(0).to(tl.int64)
    heat = tl.load(temperature + row)
    u = tl.load(uniform + row)
    p = tl.arange(0, BLOCK_P)
    is_part = p < num_parts
    tops = tl.load(largest + row * num_parts + p, mask=is_part, other=float("-inf"))
    part_sums = tl.load(sums + row * num_parts + p, mask=is_part, other=0.0)
    top = tl.max(tops, axis=0)
    best = tl.argmax(tops, axis=0, tie_break_left=True)
    # A part without any weight has nothing to scale: its sum is 0, or NaN that must reach the total.
    scales = tl.where(tops == float("-inf"), 1.0, tl.exp((tops - top) / heat))
    weights = part_sums.to(tl.float64) * scales.to(tl.float64)
    running = tl.cumsum(weights, axis=0)
    total = tl.sum(weights, axis=0)
    end = tl.max(running, axis=0)
    wanted = u * end
    part = tl.minimum(tl.sum((running <= wanted).to(tl.int32), axis=0), tl.sum((running < end).to(tl.int32), axis=0))
    part = tl.minimum(part, num_parts - 1)
    before = tl.sum(tl.where(p < part, weights, 0.0), axis=0)
    columns = part * PART + tl.arange(0, PART)
    x = tl.load(logits + row * stride_row + columns, mask=columns < vocab, other=float("-inf"))
    mass = tl.exp((x - top) / heat).to(tl.float64)
    inside = tl.cumsum(mass, axis=0)
    index = tl.sum((inside <= tl.maximum(wanted - before, 0.0)).to(tl.int32), axis=0)
    last = tl.max(tl.where(mass > 0.0, tl.arange(0, PART), 0), axis=0)
    drawn = tl.minimum(part * PART + tl.minimum(index, last), vocab - 1)
    likeliest = tl.minimum(tl.load(ids + row * num_parts + best), vocab - 1)
    token = tl.where(u < 0.0, likeliest, drawn).to(tl.int64)
    chosen = tl.load(logits + row * stride_row + token)
    tl.store(tokens + row, token)
    tl.store(logprobs + row, (chosen - top) / heat - tl.log(total.to(tl.float32)))


# Triton's launch arguments are not in its types.
_parts: Any = parts_kernel
_choose: Any = choose_kernel


def choose_plain(
    logits_BV: Float32[Tensor, "B V"], temperature_B: Float32[Tensor, " B"], uniform_B: Float64[Tensor, " B"]
) -> tuple[Int64[Tensor, " B"], Float32[Tensor, " B"]]:
    """See sampling.choice.choose_plain."""
    num_rows, vocab = logits_BV.shape
    num_parts = -(-vocab // PART)
    device = logits_BV.device
    largest_BP = torch.empty(num_rows, num_parts, dtype=torch.float32, device=device)
    sums_BP = torch.empty_like(largest_BP)
    ids_BP = torch.empty(num_rows, num_parts, dtype=torch.int32, device=device)
    tokens_B = torch.empty(num_rows, dtype=torch.int64, device=device)
    logprobs_B = torch.empty(num_rows, dtype=torch.float32, device=device)
    row = (vocab, logits_BV.stride(0), num_parts)
    found = (largest_BP, sums_BP, ids_BP)
    _parts[(num_parts, num_rows)](logits_BV, temperature_B, *found, *row, PART=PART, num_warps=8)
    block = 1 << (num_parts - 1).bit_length()
    outputs = (tokens_B, logprobs_B)
    _choose[(num_rows,)](
        logits_BV, temperature_B, uniform_B, *found, *outputs, *row, PART=PART, BLOCK_P=block, num_warps=8
    )
    return tokens_B, logprobs_B
