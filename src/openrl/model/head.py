"""Log-probabilities of given target tokens without ever holding all logits.

Legend: M rows that have targets, K targets a row, C rows of a chunk, D model dim, V vocab, B block of V, R rank.

The vocabulary is taken block by block, with a running maximum and sum, so that a chunk's logits stay in the caches of
a CPU. d logp(y) / d h = W[y] - p W: where the head is frozen, p W is summed in the same pass and kept ([M, D]); the
backward pass then needs no logits, whatever the loss. Where the head itself is adapted, the backward pass recomputes
the logits. (Running softmax: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.)

On CUDA a block is the whole vocabulary, and model.head_kernels does what lies between the two products.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import Function, FunctionCtx

from openrl.model.adapter import HEAD_NAME
from openrl.model.base_model import BaseModel
from openrl.model.batch import ROW_MULTIPLE, Adapters, Segment
from openrl.model.lora import AdapterBank, SlotFactors, TrainingAdapters, merge_by_slot, product_fp32, row_window
from openrl.model.transfers import to_device

CHUNK_BYTES = 2**30
"""fp32 logits held at once where a block is the whole vocabulary (CUDA)."""

CHUNK_ROW_MULTIPLE = 128
"""Rows of a chunk on CUDA come in whole tiles of a matrix product."""

MAX_CHUNK_ROWS = 256
"""Rows of a chunk on CPU: enough to read the head's weights rarely, few enough for the caches."""

ADAPTED_CHUNK_ROWS = 64
"""Rows whose whole logits an adapted head's backward pass holds."""

ABSENT = -1
"""A target id that asks for nothing: its log-probability is 0 and carries no gradient."""


def target_logprobs(
    model: BaseModel,
    hidden_MD: Float[Tensor, "M D"],
    targets_MK: Int64[Tensor, "M K"],
    adapters: Adapters | None = None,
    segments: tuple[Segment, ...] = (),
    needs_grad_M: Bool[Tensor, " M"] | None = None,
) -> Float[Tensor, "M K"]:
    """fp32 log-probabilities at temperature 1; differentiable where autograd is on.

    `segments` say whose rows these are; where there are adapters, rows beyond them are padding that asks for nothing.
    M must be a multiple of ROW_MULTIPLE on CPU. Rows that `needs_grad_M` excludes get no gradient: their half of the
    work is left out; best on the host, where they can be counted without waiting for the device.
    """
    bank = adapters.bank if isinstance(adapters, TrainingAdapters) else adapters
    assert bank is None or isinstance(bank, AdapterBank)
    plan = HeadPlan(model, targets_MK, bank, segments, needs_grad_M)
    if not torch.is_grad_enabled() or not hidden_MD.requires_grad:
        return plan.forward(hidden_MD, keep_expectation=False)[0]
    sink = adapters if isinstance(adapters, TrainingAdapters) else None
    result: Any = _TargetLogprobs.apply(hidden_MD, plan, sink)
    return result


@dataclass(frozen=True, slots=True)
class HeadPlan:
    """What one evaluation of the head works on."""

    model: BaseModel
    targets_MK: Tensor
    bank: AdapterBank | None
    segments: tuple[Segment, ...]
    needs_grad_M: Tensor | None

    @property
    def is_adapted(self) -> bool:
        """Whether any row's adapter changes the head."""
        return self.bank is not None and any(self.bank.factors(s.slot, HEAD_NAME) is not None for s in self.segments)

    @property
    def chunk_rows(self) -> int:
        """Rows taken at once."""
        if self.model.device.type == "cpu":
            return MAX_CHUNK_ROWS
        num_rows = CHUNK_BYTES // (4 * self.model.vocab_size)
        return max(num_rows // CHUNK_ROW_MULTIPLE * CHUNK_ROW_MULTIPLE, CHUNK_ROW_MULTIPLE)

    def chunks(self) -> Iterator[slice]:
        """Row ranges in order."""
        num_rows = self.targets_MK.shape[0]
        for start in range(0, num_rows, self.chunk_rows):
            yield slice(start, min(start + self.chunk_rows, num_rows))

    def forward(self, hidden_MD: Tensor, keep_expectation: bool) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities [M, K], and p W [M, D] where it is wanted."""
        logprobs_MK = torch.empty(self.targets_MK.shape, dtype=torch.float32, device=hidden_MD.device)
        expected_MD = torch.zeros_like(hidden_MD) if keep_expectation else None
        chosen = self._chosen() if keep_expectation else None
        with torch.no_grad():
            for rows in self.chunks():
                chunk = HeadChunk(self, hidden_MD[rows], rows)
                chosen_C = None if chosen is None else chosen.within(rows)
                logprobs_MK[rows], expected = chunk.run(chosen_C)
                if expected_MD is not None and expected is not None and chosen_C is not None:
                    expected_MD[rows].index_copy_(0, chosen_C, expected)
        return logprobs_MK, expected_MD

    def _chosen(self) -> "_ChosenRows":
        """The rows that may get a gradient."""
        num_rows = self.targets_MK.shape[0]
        host_P = torch.arange(num_rows) if self.needs_grad_M is None else self.needs_grad_M.cpu().nonzero()[:, 0]
        return _ChosenRows(host_P, to_device(host_P, self.targets_MK.device))


class _ChosenRows(NamedTuple):
    """Row indices in order; a chunk's are counted on the host, which then need not wait for the device."""

    host_P: Tensor
    device_P: Tensor

    def within(self, rows: slice) -> Tensor:
        """Those of a chunk, counted from its start."""
        start, stop = torch.searchsorted(self.host_P, torch.tensor([rows.start, rows.stop])).tolist()
        return self.device_P[start:stop] - rows.start


class HeadChunk:
    """One pass over the vocabulary for a chunk of rows."""

    def __init__(self, plan: HeadPlan, hidden_CD: Tensor, rows: slice) -> None:
        self._model = plan.model
        self._hidden_CD = hidden_CD.contiguous()
        self._targets_CK = plan.targets_MK[rows]
        self._lora = _head_loras(plan, self._hidden_CD, rows)

    def run(self, chosen_C: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities [C, K], and p W of the chosen rows."""
        if self._hidden_CD.is_cuda:
            return self.run_fused(chosen_C)
        return self.run_by_blocks(chosen_C)

    def run_by_blocks(self, chosen_C: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The same by torch alone, block by block."""
        so_far = _nothing_folded(self._targets_CK)
        expectation = _Expectation(self._model, chosen_C)
        for block in self._model.head_blocks():
            weight_BD = self._model.head_rows(block)
            logits_CB = self._logits(weight_BD, block)
            p_CB, shrink_C1, so_far = _fold(logits_CB, self._targets_CK, block.start, so_far)
            expectation.add(p_CB, weight_BD, shrink_C1)
        logprobs_CK = so_far.picked_CK - (so_far.highest_C1 + torch.log(so_far.total_C1))
        return logprobs_CK.masked_fill_(self._targets_CK == ABSENT, 0.0), expectation.result(so_far.total_C1)

    def run_fused(self, chosen_C: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The same with the whole vocabulary at once, by kernels."""
        from openrl.model.head_kernels import probabilities, row_logprobs  # noqa: PLC0415  (triton: only with CUDA)

        whole = slice(0, self._model.vocab_size)
        weight_VD = self._model.head_rows(whole)
        logits_CV = self._logits(weight_VD, whole)
        logprobs_CK, lse_C = row_logprobs(logits_CV, self._targets_CK)
        if chosen_C is None or not chosen_C.numel():
            return logprobs_CK, None
        takes_all = chosen_C.numel() == logits_CV.shape[0]
        p_PV = probabilities(logits_CV, lse_C, None if takes_all else chosen_C, self._model.dtype)
        return logprobs_CK, product_fp32(p_PV, weight_VD).to(self._model.dtype)

    def _logits(self, weight_BD: Tensor, block: slice) -> Float[Tensor, "C B"]:
        # Never rounded to bf16, which would cost a logit of 10 up to 0.03.
        logits_CB = product_fp32(self._hidden_CD, weight_BD.t())
        for lora in self._lora:
            lora.add(logits_CB, block)
        return logits_CB


class _Folded(NamedTuple):
    """What is known of a chunk after some blocks of the vocabulary."""

    highest_C1: Tensor  # logit
    total_C1: Tensor  # sum of exp(logit - highest)
    picked_CK: Tensor  # logits of the targets met


def _nothing_folded(targets_CK: Tensor) -> _Folded:
    highest_C1 = torch.full((targets_CK.shape[0], 1), float("-inf"), device=targets_CK.device)
    return _Folded(highest_C1, torch.zeros_like(highest_C1), torch.zeros(targets_CK.shape, device=targets_CK.device))


def _fold(logits_CB: Tensor, targets_CK: Tensor, start: int, so_far: _Folded) -> tuple[Tensor, Tensor, _Folded]:
    """Take one block of logits in; also exp(logit - highest) in their place, and what the sums before shrink by.

    The twin of model.head_kernels.
    """
    picked_CK = _pick(logits_CB, targets_CK, start, so_far.picked_CK)
    highest_C1 = torch.maximum(so_far.highest_C1, logits_CB.amax(-1, keepdim=True))
    p_CB = logits_CB.sub_(highest_C1).exp_()
    shrink_C1 = torch.exp(so_far.highest_C1 - highest_C1)
    total_C1 = so_far.total_C1 * shrink_C1 + p_CB.sum(-1, keepdim=True)
    return p_CB, shrink_C1, _Folded(highest_C1, total_C1, picked_CK)


class _Expectation:
    """The running p W of chosen rows; their number is padded so that rows keep their bits."""

    def __init__(self, model: BaseModel, chosen_C: Tensor | None) -> None:
        self._dtype = model.dtype
        self._chosen_P: Tensor | None = None
        if chosen_C is not None and chosen_C.numel():
            self._num_chosen = chosen_C.numel()
            self._chosen_P = torch.nn.functional.pad(chosen_C, (0, -self._num_chosen % ROW_MULTIPLE))
            size = (self._chosen_P.numel(), model.head_weight.shape[1])
            self._sum_PD = torch.zeros(size, dtype=torch.float32, device=model.device)

    def add(self, p_CB: Tensor, weight_BD: Tensor, shrink_C1: Tensor) -> None:
        """Add one block's share; what was added before shrinks to the new maximum."""
        if self._chosen_P is not None:
            p_PB, shrink_P1 = self._rows(p_CB), self._rows(shrink_C1)
            self._sum_PD.mul_(shrink_P1).add_(product_fp32(p_PB.to(self._dtype), weight_BD))

    def result(self, total_C1: Tensor) -> Float[Tensor, "P D"] | None:
        """p W of the chosen rows, in the compute type; None where none was chosen."""
        if self._chosen_P is None:
            return None
        mean_PD = self._sum_PD / self._rows(total_C1)
        return mean_PD[: self._num_chosen].to(self._dtype)

    def _rows(self, values: Tensor) -> Tensor:
        """The chosen rows; no copy where that is all of them in order."""
        assert self._chosen_P is not None
        return values if self._num_chosen == values.shape[0] else values[self._chosen_P]


@dataclass(frozen=True, slots=True)
class _HeadLora:
    """One slot's product at the head, for its rows of a chunk."""

    factors: SlotFactors
    xa_WR: Tensor
    rows: slice  # of the chunk
    kept: slice  # of the window

    def add(self, logits_CB: Tensor, block: slice) -> None:
        """Add the block's part, in place."""
        delta_WB = self.xa_WR @ self.factors.b_OR[block].t()
        logits_CB[self.rows].add_(delta_WB[self.kept], alpha=self.factors.scale)


def _head_loras(plan: HeadPlan, hidden_CD: Tensor, rows: slice) -> list[_HeadLora]:
    if plan.bank is None:
        return []
    loras: list[_HeadLora] = []
    for segment in merge_by_slot(clip_segments(plan.segments, rows.start, rows.stop)):
        factors = plan.bank.factors(segment.slot, HEAD_NAME)
        if factors is not None:
            window = row_window(segment, hidden_CD.shape[0])
            kept = slice(window.offset, window.offset + window.length)
            wanted = slice(segment.start, segment.start + segment.length)
            loras.append(_HeadLora(factors, window.take(hidden_CD) @ factors.a_RD.t(), wanted, kept))
    return loras


def _pick(logits_CB: Tensor, targets_CK: Tensor, start: int, picked_CK: Tensor) -> Tensor:
    """The logits of the targets that lie in this block, beside those of the blocks before."""
    local_CK = targets_CK - start
    is_here_CK = (local_CK >= 0) & (local_CK < logits_CB.shape[1])
    return torch.where(is_here_CK, logits_CB.gather(1, local_CK.clamp(0, logits_CB.shape[1] - 1)), picked_CK)


class _TargetLogprobs(Function):
    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, plan: HeadPlan, adapters: TrainingAdapters | None) -> Tensor:
        ctx.plan, ctx.adapters = plan, adapters
        logprobs_MK, expected_MD = plan.forward(hidden_MD, keep_expectation=not plan.is_adapted)
        ctx.save_for_backward(hidden_MD, expected_MD)
        return logprobs_MK

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Any) -> Any:
        saved: Any = ctx
        plan: HeadPlan = saved.plan
        hidden_MD, expected_MD = saved.saved_tensors
        g_MK = grads[0].masked_fill(plan.targets_MK == ABSENT, 0.0)
        if expected_MD is None:
            return _adapted_backward(plan, saved.adapters, hidden_MD, g_MK), None, None
        picked_MD = _weighted_rows(plan.model, plan.targets_MK, g_MK)
        # The two are close where the model is sure: rounded before they are subtracted, little would be left.
        total_MD = g_MK.sum(-1, keepdim=True) * expected_MD.float()
        return (picked_MD - total_MD).to(hidden_MD.dtype), None, None


def clip_segments(segments: tuple[Segment, ...], start: int, stop: int) -> tuple[Segment, ...]:
    """The parts of segments inside rows [start, stop), counted from `start`."""
    clipped: list[Segment] = []
    for segment in segments:
        low, high = max(segment.start, start), min(segment.start + segment.length, stop)
        if low < high:
            clipped.append(Segment(low - start, high - low, segment.slot, segment.job))
    return tuple(clipped)


def _weighted_rows(model: BaseModel, targets_MK: Tensor, g_MK: Tensor) -> Tensor:
    """sum_k g[m, k] W[target[m, k]] in fp32, summed in order of k."""
    weight_VD = model.head_weight
    out_MD = torch.zeros(targets_MK.shape[0], weight_VD.shape[1], dtype=torch.float32, device=weight_VD.device)
    for k in range(targets_MK.shape[1]):
        out_MD += g_MK[:, k, None] * weight_VD[targets_MK[:, k].clamp(min=0)].float()
    return out_MD


def _adapted_backward(plan: HeadPlan, adapters: TrainingAdapters, hidden_MD: Tensor, g_MK: Tensor) -> Tensor:
    """Gradient of the hidden rows; factor gradients of the head go to the sink, segment by segment."""
    dhidden_MD = torch.zeros_like(hidden_MD)
    step = min(plan.chunk_rows, ADAPTED_CHUNK_ROWS)
    for segment in plan.segments:
        factors = adapters.bank.factors(segment.slot, HEAD_NAME)
        for start in range(segment.start, segment.start + segment.length, step):
            stop = min(start + step, segment.start + segment.length)
            part = Segment(start, stop - start, segment.slot, segment.job)
            dhidden_MD[start:stop] = _adapted_part(plan, adapters, factors, part, hidden_MD, g_MK)
    return dhidden_MD


def _adapted_part(
    plan: HeadPlan,
    adapters: TrainingAdapters,
    factors: SlotFactors | None,
    part: Segment,
    hidden_MD: Tensor,
    g_MK: Tensor,
) -> Tensor:
    """Recompute one stretch of rows of one slot; returns its hidden gradient [length, D]."""
    window = row_window(part, hidden_MD.shape[0])
    h_WD, targets_WK, g_WK = window.take(hidden_MD), window.take(plan.targets_MK), window.take(g_MK)
    local = (Segment(0, h_WD.shape[0], part.slot, part.job),)
    logits_WV = plan.model.logits(h_WD, adapters.bank, local)
    d_WV = torch.softmax(logits_WV, -1).mul_(-g_WK.sum(-1, keepdim=True))
    d_WV.scatter_add_(1, targets_WK.clamp(min=0), g_WK)
    d_WV = d_WV.to(h_WD.dtype)
    dh_WD = torch.zeros_like(h_WD)
    for block in plan.model.head_blocks():
        dh_WD += d_WV[:, block] @ plan.model.head_rows(block)
    if factors is not None:
        db_WR = (d_WV @ factors.b_OR) * factors.scale
        ha_WR = h_WD @ factors.a_RD.t()
        da_RD = product_fp32(window.keep(db_WR).t(), window.keep(h_WD))
        db_OR = product_fp32(window.keep(d_WV).t(), window.keep(ha_WR)) * factors.scale
        adapters.sink.add(part.job, HEAD_NAME, da_RD, db_OR)
        dh_WD = dh_WD + db_WR @ factors.a_RD
    return window.keep(dh_WD)
