"""What CUDA does to a chunk of whole logits: log-probabilities of targets, and normalised probabilities.

Legend: C rows of a chunk, P chosen rows of it, K targets a row, V vocab, N splits of a row.

A row is read in splits of fixed size, each by one program, so that few rows fill the device as well. The sums of the
splits are put together in a second launch: the same order every time.
"""
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportArgumentType=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int64
from torch import Tensor

SPLIT = 8192
"""Logits of one program: 32 KB, in registers as a whole."""

NUM_WARPS = 8
DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def split_sums_kernel(logits_CV, highest_CN, total_CN, vocab, split: tl.constexpr):
    """The largest logit of a split, and the sum of exp(logit - largest)."""
    row, part = tl.program_id(0), tl.program_id(1)
    places = part * split + tl.arange(0, split)
    logits = tl.load(logits_CV + row.to(tl.int64) * vocab + places, mask=places < vocab, other=float("-inf"))
    highest = tl.max(logits, 0)
    out = row * tl.num_programs(1) + part
    tl.store(highest_CN + out, highest)
    tl.store(total_CN + out, tl.sum(tl.exp(logits - highest), 0))


@triton.jit
def pick_kernel(
    logits_CV,
    highest_CN,
    total_CN,
    targets_CK,
    logprobs_CK,
    lse_C,
    vocab,
    num_splits,
    num_targets,
    splits: tl.constexpr,
    targets: tl.constexpr,
):
    """The row's log-sum-exp from its splits, and its targets' log-probabilities; 0 where there is no target."""
    row = tl.program_id(0)
    part = tl.arange(0, splits)
    highest = tl.load(highest_CN + row * num_splits + part, mask=part < num_splits, other=float("-inf"))
    total = tl.load(total_CN + row * num_splits + part, mask=part < num_splits, other=0.0)
    top = tl.max(highest, 0)
    lse = top + tl.log(tl.sum(total * tl.exp(highest - top), 0))
    tl.store(lse_C + row, lse)
    k = tl.arange(0, targets)
    ids = tl.load(targets_CK + row.to(tl.int64) * num_targets + k, mask=k < num_targets, other=-1)
    picked = tl.load(logits_CV + row.to(tl.int64) * vocab + ids, mask=ids >= 0, other=0.0)
    logprobs = tl.where(ids >= 0, picked - lse, 0.0)
    tl.store(logprobs_CK + row.to(tl.int64) * num_targets + k, logprobs, mask=k < num_targets)


@triton.jit
def probabilities_kernel(
    logits_CV, lse_C, chosen_P, p_PV, vocab, takes_all: tl.constexpr, p_type: tl.constexpr, split: tl.constexpr
):
    """One split of one chosen row."""
    number, part = tl.program_id(0), tl.program_id(1)
    row = number.to(tl.int64) if takes_all else tl.load(chosen_P + number)
    places = part * split + tl.arange(0, split)
    keep = places < vocab
    logits = tl.load(logits_CV + row * vocab + places, mask=keep, other=float("-inf"))
    p = tl.exp(logits - tl.load(lse_C + row))
    tl.store(p_PV + number.to(tl.int64) * vocab + places, p.to(p_type), mask=keep)


def row_logprobs(
    logits_CV: Float[Tensor, "C V"], targets_CK: Int64[Tensor, "C K"]
) -> tuple[Float[Tensor, "C K"], Float[Tensor, " C"]]:
    """Log-probabilities of the targets, 0 for a negative id, and each row's log-sum-exp."""
    num_rows, vocab = logits_CV.shape
    num_targets, num_splits = targets_CK.shape[1], triton.cdiv(vocab, SPLIT)
    logits_CV, targets_CK = logits_CV.contiguous(), targets_CK.contiguous()
    highest_CN, total_CN = logits_CV.new_empty(2, num_rows, num_splits)
    logprobs_CK, lse_C = logits_CV.new_empty(targets_CK.shape), logits_CV.new_empty(num_rows)
    split_sums_kernel[(num_rows, num_splits)](logits_CV, highest_CN, total_CN, vocab, split=SPLIT, num_warps=NUM_WARPS)
    pick_kernel[(num_rows,)](
        logits_CV,
        highest_CN,
        total_CN,
        targets_CK,
        logprobs_CK,
        lse_C,
        vocab,
        num_splits,
        num_targets,
        splits=triton.next_power_of_2(num_splits),
        targets=triton.next_power_of_2(num_targets),
        num_warps=1,
    )
    return logprobs_CK, lse_C


def probabilities(
    logits_CV: Float[Tensor, "C V"],
    lse_C: Float[Tensor, " C"],
    chosen_P: Int64[Tensor, " P"] | None,
    dtype: torch.dtype,
) -> Float[Tensor, "P V"]:
    """exp(logit - log-sum-exp) of chosen rows, or of all, rounded once."""
    vocab = logits_CV.shape[1]
    num_rows = logits_CV.shape[0] if chosen_P is None else chosen_P.numel()
    p_PV = logits_CV.new_empty(num_rows, vocab, dtype=dtype)
    probabilities_kernel[(num_rows, triton.cdiv(vocab, SPLIT))](
        logits_CV.contiguous(),
        lse_C,
        lse_C if chosen_P is None else chosen_P,
        p_PV,
        vocab,
        takes_all=chosen_P is None,
        p_type=DTYPES[dtype],
        split=SPLIT,
        num_warps=NUM_WARPS,
    )
    return p_PV
