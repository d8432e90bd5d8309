"""Log-probabilities of given target tokens without ever holding all logits.

Legend: M rows that have targets, K targets a row, D model dim, V vocab, R rank.

d logp(y) / d h = W[y] - p W. Where the head is frozen, p W is computed chunk by chunk in the forward pass and
kept ([M, D]); the backward pass then needs no logits, whatever the loss. Where the head itself is adapted, the
backward pass recomputes each chunk's logits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import Function, FunctionCtx

from openrl.model.adapter import HEAD_NAME
from openrl.model.base_model import BaseModel
from openrl.model.batch import ROW_MULTIPLE, Adapters, Segment
from openrl.model.lora import SlotFactors, TrainingAdapters, product_fp32, row_window

CHUNK_BYTES_CPU = 2**26
CHUNK_BYTES_CUDA = 2**30
"""fp32 logits held at once: what stays in the caches' reach on a CPU, what keeps a GPU from waiting for launches."""

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

    `segments` say whose rows these are (rows beyond them use the base head). M must be a multiple of ROW_MULTIPLE
    on CPU. Rows that `needs_grad_M` excludes get no gradient: their half of the work is left out.
    """
    if not torch.is_grad_enabled() or not hidden_MD.requires_grad:
        plan = _Plan(model, targets_MK, adapters, segments, None)
        return plan.forward(hidden_MD, keep_expectation=False)[0]
    plan = _Plan(model, targets_MK, adapters, segments, needs_grad_M)
    result: Any = _TargetLogprobs.apply(hidden_MD, plan)
    return result


@dataclass(frozen=True, slots=True)
class _Plan:
    """What one evaluation of the head works on."""

    model: BaseModel
    targets_MK: Tensor
    adapters: Adapters | None
    segments: tuple[Segment, ...]
    needs_grad_M: Tensor | None

    @property
    def chunk_rows(self) -> int:
        """Rows whose logits fit into one chunk, in whole row multiples."""
        chunk_bytes = CHUNK_BYTES_CUDA if self.model.device.type == "cuda" else CHUNK_BYTES_CPU
        return max(chunk_bytes // (4 * self.model.vocab_size) // ROW_MULTIPLE * ROW_MULTIPLE, ROW_MULTIPLE)

    def chunks(self) -> Iterator[tuple[slice, tuple[Segment, ...]]]:
        """Row ranges and the segments inside them, counted from the range's start."""
        num_rows = self.targets_MK.shape[0]
        for start in range(0, num_rows, self.chunk_rows):
            stop = min(start + self.chunk_rows, num_rows)
            yield slice(start, stop), clip_segments(self.segments, start, stop)

    def forward(self, hidden_MD: Tensor, keep_expectation: bool) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities [M, K], and p W [M, D] where it is wanted."""
        logprobs_MK = torch.empty(self.targets_MK.shape, dtype=torch.float32, device=hidden_MD.device)
        expected_MD = torch.zeros_like(hidden_MD) if keep_expectation else None
        inference = _inference_adapters(self.adapters)
        for rows, segments in self.chunks():
            logits_CV = self.model.logits(hidden_MD[rows], inference, segments)
            lse_C = torch.logsumexp(logits_CV, -1)
            logprobs_MK[rows] = _pick(logits_CV, lse_C, self.targets_MK[rows])
            if expected_MD is not None:
                expected_MD[rows] = self._expectation(logits_CV, lse_C, rows)
        return logprobs_MK, expected_MD

    def _expectation(self, logits_CV: Tensor, lse_C: Tensor, rows: slice) -> Tensor:
        """p W of the rows that may get a gradient; zeros elsewhere."""
        weight_VD = self.model.head_weight
        out_CD = torch.zeros(logits_CV.shape[0], weight_VD.shape[1], dtype=weight_VD.dtype, device=weight_VD.device)
        chosen_C = self._chosen(rows, logits_CV.shape[0])
        if chosen_C.numel():
            p_CV = torch.exp(logits_CV[chosen_C] - lse_C[chosen_C, None])
            out_CD[chosen_C] = _padded_product(p_CV.to(weight_VD.dtype), weight_VD)
        return out_CD

    def _chosen(self, rows: slice, size: int) -> Tensor:
        """Indices, within the chunk, of rows that may get a gradient."""
        if self.needs_grad_M is None:
            return torch.arange(size, device=self.targets_MK.device)
        return self.needs_grad_M[rows].nonzero()[:, 0]


class _TargetLogprobs(Function):
    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, plan: _Plan) -> Tensor:
        ctx.plan, ctx.is_adapted = plan, _is_head_adapted(plan)
        logprobs_MK, expected_MD = plan.forward(hidden_MD, keep_expectation=not ctx.is_adapted)
        ctx.save_for_backward(hidden_MD, expected_MD)
        return logprobs_MK

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Any) -> Any:
        saved: Any = ctx
        plan: _Plan = saved.plan
        hidden_MD, expected_MD = saved.saved_tensors
        g_MK = grads[0].masked_fill(plan.targets_MK == ABSENT, 0.0)
        if expected_MD is None:
            return _adapted_backward(plan, hidden_MD, g_MK), None
        weight_VD = plan.model.head_weight
        picked_MD = _weighted_rows(weight_VD, plan.targets_MK, g_MK)
        return picked_MD - (g_MK.sum(-1, keepdim=True) * expected_MD.float()).to(picked_MD.dtype), None


def clip_segments(segments: tuple[Segment, ...], start: int, stop: int) -> tuple[Segment, ...]:
    """The parts of segments inside rows [start, stop), counted from `start`."""
    clipped: list[Segment] = []
    for segment in segments:
        low, high = max(segment.start, start), min(segment.start + segment.length, stop)
        if low < high:
            clipped.append(Segment(low - start, high - low, segment.slot, segment.job))
    return tuple(clipped)


def _inference_adapters(adapters: Adapters | None) -> Adapters | None:
    return adapters.bank if isinstance(adapters, TrainingAdapters) else adapters


def _is_head_adapted(plan: _Plan) -> bool:
    adapters = plan.adapters
    if not isinstance(adapters, TrainingAdapters):
        return False
    return any(adapters.bank.factors(segment.slot, HEAD_NAME) is not None for segment in plan.segments)


def _pick(logits_CV: Tensor, lse_C: Tensor, targets_CK: Tensor) -> Tensor:
    picked_CK = logits_CV.gather(1, targets_CK.clamp(min=0)) - lse_C[:, None]
    return picked_CK.masked_fill(targets_CK == ABSENT, 0.0)


def _weighted_rows(weight_VD: Tensor, targets_MK: Tensor, g_MK: Tensor) -> Tensor:
    """sum_k g[m, k] W[target[m, k]], summed in order of k."""
    out_MD = torch.zeros(targets_MK.shape[0], weight_VD.shape[1], dtype=torch.float32, device=weight_VD.device)
    for k in range(targets_MK.shape[1]):
        out_MD += g_MK[:, k, None] * weight_VD[targets_MK[:, k].clamp(min=0)].float()
    return out_MD.to(weight_VD.dtype)


def _padded_product(left_CV: Tensor, right_VD: Tensor) -> Tensor:
    """left @ right with the row count padded to a whole multiple, so that rows keep their bits."""
    padding = -left_CV.shape[0] % ROW_MULTIPLE
    if padding:
        left_CV = torch.nn.functional.pad(left_CV, (0, 0, 0, padding))
    product = left_CV @ right_VD
    return product[: product.shape[0] - padding]


def _adapted_backward(plan: _Plan, hidden_MD: Tensor, g_MK: Tensor) -> Tensor:
    """Gradient of the hidden rows; factor gradients of the head go to the sink, segment by segment."""
    adapters = plan.adapters
    assert isinstance(adapters, TrainingAdapters)
    dhidden_MD = torch.zeros_like(hidden_MD)
    for segment in plan.segments:
        factors = adapters.bank.factors(segment.slot, HEAD_NAME)
        for start in range(segment.start, segment.start + segment.length, plan.chunk_rows):
            stop = min(start + plan.chunk_rows, segment.start + segment.length)
            part = Segment(start, stop - start, segment.slot, segment.job)
            dhidden_MD[start:stop] = _adapted_part(plan, adapters, factors, part, hidden_MD, g_MK)
    return dhidden_MD


def _adapted_part(
    plan: _Plan,
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
    dh_WD = d_WV @ plan.model.head_weight
    if factors is not None:
        db_WR = (d_WV @ factors.b_OR) * factors.scale
        ha_WR = h_WD @ factors.a_RD.t()
        da_RD = product_fp32(window.keep(db_WR).t(), window.keep(h_WD))
        db_OR = product_fp32(window.keep(d_WV).t(), window.keep(ha_WR)) * factors.scale
        adapters.sink.add(part.job, HEAD_NAME, da_RD, db_OR)
        dh_WD = dh_WD + db_WR @ factors.a_RD
    return window.keep(dh_WD)
