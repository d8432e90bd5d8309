"""Linear layers that add each row's own LoRA product, from adapters stacked in slots.

Legend: T packed rows, D inputs, O outputs, R rank, S slots.

Row windows: on CPU every product runs over a multiple of ROW_MULTIPLE rows, so that a row's bits do not
depend on its neighbours. A segment of another length is computed in a window of rows around it, and the
rows that belong to others are dropped.
"""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import Function, FunctionCtx

from openrl.model.adapter import AdapterWeights, LoraPair
from openrl.model.batch import BASE_SLOT, ROW_MULTIPLE, Adapters, Batch, Segment
from openrl.model.memory import clear_lazily, lazy_zeros


@dataclass(frozen=True, slots=True)
class SlotFactors:
    """One slot's factors of one linear, in the compute type."""

    a_RD: Float[Tensor, "R D"]
    b_OR: Float[Tensor, "O R"]
    scale: float


class AdapterBank:
    """Adapters of many runs or snapshots, stacked per linear: A [S, R, D] and B [S, O, R].

    Ranks may differ between slots; a slot uses the first `rank` rows of its A. A stack is allocated when
    the first adapter with that linear is written.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        num_slots: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_slots = num_slots
        self._shapes = shapes
        self._dtype = dtype
        self._device = device
        self._max_rank = 0
        self._stacks: dict[str, tuple[Tensor, Tensor]] = {}
        self._slots: list[dict[str, SlotFactors]] = [{} for _ in range(num_slots)]

    def write(self, slot: int, adapter: AdapterWeights) -> None:
        """Copy an adapter into a slot, replacing what was there."""
        self.clear(slot)
        if adapter.rank > self._max_rank:
            self._grow(adapter.rank)
        for name in adapter.pairs:
            self._stack(name)
            self._slots[slot][name] = self._view(name, slot, adapter.rank, adapter.scale)
        self.refill(slot, adapter.pairs)

    def refill(self, slot: int, pairs: Mapping[str, LoraPair]) -> None:
        """Overwrite factors that the slot already has, in few launches."""
        slots = [self._slots[slot][name] for name in pairs]
        if slots:
            targets = [part for factors in slots for part in (factors.a_RD, factors.b_OR)]
            sources = [part for pair in pairs.values() for part in (pair.a_RD, pair.b_OR)]
            torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateImportUsage]

    def clear(self, slot: int) -> None:
        """Zero a slot, so that nothing of its former owner is left, and give back its memory where that can be."""
        for name in self._slots[slot]:
            a_SRD, b_SOR = self._stacks[name]
            clear_lazily(a_SRD[slot])
            clear_lazily(b_SOR[slot])
        self._slots[slot] = {}

    def factors(self, slot: int, name: str) -> SlotFactors | None:
        """The slot's factors of a linear, or None where it adapts none."""
        return None if slot == BASE_SLOT else self._slots[slot].get(name)

    def apply(
        self,
        name: str,
        x_TD: Float[Tensor, "T D"],
        y_TO: Float[Tensor, "T O"],
        segments: tuple[Segment, ...],
    ) -> Float[Tensor, "T O"]:
        """See Adapters.apply; without gradients, adds in place."""
        if name in self._stacks:
            for rows in merge_by_slot(segments):
                factors = self.factors(rows.slot, name)
                if factors is not None:
                    add_lora(factors, x_TD, y_TO, rows)
        return y_TO

    def _stack(self, name: str) -> tuple[Tensor, Tensor]:
        if name not in self._stacks:
            num_inputs, num_outputs = self._shapes[name]
            size = (self.num_slots, self._max_rank, num_inputs)
            a_SRD = lazy_zeros(size, self._dtype, self._device)
            size = (self.num_slots, num_outputs, self._max_rank)
            self._stacks[name] = (a_SRD, lazy_zeros(size, self._dtype, self._device))
        return self._stacks[name]

    def _view(self, name: str, slot: int, rank: int, scale: float) -> SlotFactors:
        a_SRD, b_SOR = self._stacks[name]
        return SlotFactors(a_SRD[slot, :rank], b_SOR[slot, :, :rank], scale)

    def _grow(self, max_rank: int) -> None:
        """Make room for a larger rank; slots keep their weights."""
        old, self._stacks, self._max_rank = self._stacks, {}, max_rank
        for name, (old_a_SRD, old_b_SOR) in old.items():
            a_SRD, b_SOR = self._stack(name)
            a_SRD[:, : old_a_SRD.shape[1]].copy_(old_a_SRD)
            b_SOR[:, :, : old_b_SOR.shape[2]].copy_(old_b_SOR)
        for slot, names in enumerate(self._slots):
            for name, factors in names.items():
                names[name] = self._view(name, slot, factors.a_RD.shape[0], factors.scale)


class GradientSink(Protocol):
    """Takes the gradients of LoRA factors as a backward pass finds them."""

    def add(self, job: int, name: str, da_RD: Float[Tensor, "R D"], db_OR: Float[Tensor, "O R"]) -> None:
        """Add one segment's fp32 gradients; called in segment order for each linear."""
        ...


class TrainingAdapters:
    """Adapters whose backward pass hands factor gradients to a sink, segment by segment."""

    def __init__(self, bank: AdapterBank, sink: GradientSink, device: torch.device) -> None:
        self.bank = bank
        self.sink = sink
        # Gives autograd a reason to build the graph: the factors themselves are not its leaves.
        self.anchor = torch.zeros((), device=device, requires_grad=True)

    def apply(
        self,
        name: str,
        x_TD: Float[Tensor, "T D"],
        y_TO: Float[Tensor, "T O"],
        segments: tuple[Segment, ...],
    ) -> Float[Tensor, "T O"]:
        """See Adapters.apply; differentiable in x and y, gradients of factors go to the sink."""
        if all(self.bank.factors(segment.slot, name) is None for segment in segments):
            return y_TO
        return _AddLora.apply(x_TD, y_TO, self.anchor, self, name, segments)  # pyright: ignore[reportReturnType]


class _AddLora(Function):
    """y + scale (x A^T) B^T per segment; gradients of A and B leave through the sink."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        y_TO: Tensor,
        anchor: Tensor,
        adapters: TrainingAdapters,
        name: str,
        segments: tuple[Segment, ...],
    ) -> Tensor:
        del anchor
        ctx.save_for_backward(x_TD)
        ctx.adapters, ctx.name, ctx.segments = adapters, name, segments
        return adapters.bank.apply(name, x_TD, y_TO.clone(), segments)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Any) -> Any:
        saved: Any = ctx
        adapters: TrainingAdapters = saved.adapters
        (x_TD,) = saved.saved_tensors
        g_TO: Tensor = grads[0].contiguous()
        needs_dx = bool(saved.needs_input_grad[0])
        dx_TD = torch.zeros_like(x_TD) if needs_dx else None
        for segment in saved.segments:
            factors = adapters.bank.factors(segment.slot, saved.name)
            if factors is not None:
                gb_LR = _segment_gradients(adapters.sink, factors, saved.name, x_TD, g_TO, segment)
                if dx_TD is not None:
                    window = row_window(segment, x_TD.shape[0])
                    dx_LD = window.keep(gb_LR @ factors.a_RD)
                    dx_TD[segment.start : segment.start + segment.length] = dx_LD
        return dx_TD, g_TO, None, None, None, None


def _segment_gradients(
    sink: GradientSink, factors: SlotFactors, name: str, x_TD: Tensor, g_TO: Tensor, segment: Segment
) -> Tensor:
    """Hand one segment's dA, dB to the sink; returns scale * g B over the segment's row window."""
    window = row_window(segment, x_TD.shape[0])
    x_WD, g_WO = window.take(x_TD), window.take(g_TO)
    gb_WR = (g_WO @ factors.b_OR) * factors.scale
    xa_WR = x_WD @ factors.a_RD.t()
    x_LD, g_LO = window.keep(x_WD), window.keep(g_WO)
    da_RD = product_fp32(window.keep(gb_WR).t(), x_LD)
    db_OR = product_fp32(g_LO.t(), window.keep(xa_WR)) * factors.scale
    sink.add(segment.job, name, da_RD, db_OR)
    return gb_WR


def product_fp32(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, accumulated and returned in fp32."""
    if left.dtype == torch.float32:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


@dataclass(frozen=True, slots=True)
class RowWindow:
    """Rows [start, start + size) that hold the wanted rows [start + offset, ... + length)."""

    start: int
    size: int
    offset: int
    length: int

    def take(self, rows: Tensor) -> Tensor:
        """The window's rows of the whole batch."""
        return rows[self.start : self.start + self.size]

    def keep(self, window_rows: Tensor) -> Tensor:
        """The wanted rows of a product over the window."""
        return window_rows[self.offset : self.offset + self.length]


def row_window(segment: Segment, num_rows: int) -> RowWindow:
    """The window around a segment; whole multiples of ROW_MULTIPLE where the batch has room."""
    size = min(-(-segment.length // ROW_MULTIPLE) * ROW_MULTIPLE, num_rows)
    start = min(segment.start, num_rows - size)
    return RowWindow(start, size, segment.start - start, segment.length)


def add_lora(factors: SlotFactors, x_TD: Tensor, y_TO: Tensor, segment: Segment) -> None:
    """Add the slot's product to the segment's rows of y, in place."""
    window = row_window(segment, x_TD.shape[0])
    delta_WO = (window.take(x_TD) @ factors.a_RD.t()) @ factors.b_OR.t()
    rows = slice(segment.start, segment.start + segment.length)
    y_TO[rows].add_(window.keep(delta_WO), alpha=factors.scale)


def merge_by_slot(segments: Iterable[Segment]) -> list[Segment]:
    """Join neighbouring segments of one slot: one product serves them all."""
    merged: list[Segment] = []
    for segment in segments:
        last = merged[-1] if merged else None
        if last is not None and last.slot == segment.slot and last.start + last.length == segment.start:
            merged[-1] = Segment(last.start, last.length + segment.length, last.slot, last.job)
        else:
            merged.append(segment)
    return merged


class ActiveBatch:
    """What the linears of one model work on during a forward pass; empty between passes."""

    def __init__(self) -> None:
        self.adapters: Adapters | None = None
        self.segments: tuple[Segment, ...] = ()

    @contextmanager
    def using(self, batch: Batch) -> Generator[None]:
        """Work on this batch until the end of the block."""
        before = self.adapters, self.segments
        self.adapters, self.segments = batch.adapters, batch.segments
        try:
            yield
        finally:
            self.adapters, self.segments = before


class LoraLinear(nn.Module):
    """A frozen linear layer plus the LoRA products of the active batch."""

    def __init__(self, base: nn.Linear, name: str, active: ActiveBatch) -> None:
        super().__init__()
        self.weight = base.weight
        self.bias = base.bias
        self.in_features = base.in_features
        self.out_features = base.out_features
        self.row_stride = base.out_features
        self.name = name
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        """[1, T, D] -> [1, T, O], as the transformers modules around it have it."""
        y = nn.functional.linear(x, self.weight, self.bias)
        adapters = self.active.adapters
        if adapters is None:
            return y
        return adapters.apply(self.name, x[0], y[0], self.active.segments)[None]
