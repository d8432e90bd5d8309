"""The adapter bank of a GPU: adapters of linears that read the same input are stacked and computed together.

Legend: see lora_kernels; L linears in model order, J jobs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import Function, FunctionCtx

from openrl.model.adapter import AdapterWeights, LoraPair
from openrl.model.batch import BASE_SLOT, Segment
from openrl.model.linear_groups import FusedLinear, GroupAdapters, LinearGroup
from openrl.model.lora import AdapterBank, GradientSink, SlotFactors, TrainingAdapters, merge_by_slot
from openrl.model.lora_tiles import DECODE_TILE_ROWS, TRAINING_TILE_ROWS, GradientTable, GroupStack, RowTiles

RANK_MULTIPLE = 16
SHRINK_PRIORITY = -1
"""Of the stream beside a base product: the few short programs of a shrink go before the product's."""


class LoraOps(Protocol):
    """The products of one group; see lora_twin.TorchLora, which is obviously right."""

    def shrink(self, stack: GroupStack, x_TD: Tensor, tiles: RowTiles) -> Tensor: ...
    def expand(self, stack: GroupStack, xa_KTN: Tensor, y_TO: Tensor, tiles: RowTiles) -> None: ...
    def shrink_grads(self, stack: GroupStack, grads: tuple[Tensor, ...], tiles: RowTiles) -> Tensor: ...
    def expand_grads(self, stack: GroupStack, gb_1TN: Tensor, dx_TD: Tensor, tiles: RowTiles) -> None: ...
    def add_grads(
        self,
        stack: GroupStack,
        x_TD: Tensor,
        grads: tuple[Tensor, ...],
        xa_1TN: Tensor,
        gb_1TN: Tensor,
        table: GradientTable,
        linear: int,
    ) -> None: ...
    def copy(self, table_M5: Tensor, source: torch.dtype, target: torch.dtype) -> None: ...


@dataclass(frozen=True, slots=True)
class _Held:
    """What a slot holds: which linears it adapts, and how."""

    names: tuple[str, ...] = ()
    rank: int = 0
    scale: float = 0.0


_NOTHING = _Held()


class GroupedBank(AdapterBank, GroupAdapters):
    """See AdapterBank. Slots of a group lie in one pair of stacks; `factors` are views of them, made when asked for.

    `generation` changes when stacks are allocated: what a CUDA graph has captured before then is stale.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        groups: Sequence[LinearGroup],
        num_slots: int,
        dtype: torch.dtype,
        device: torch.device,
        ops: LoraOps,
    ) -> None:
        super().__init__(shapes, num_slots, dtype, device)
        self.ops = ops
        self.generation = 0
        self._groups = {group.names[0]: group for group in groups}
        self._group_of = {name: group for group in groups for name in group.names}
        self._row_of = {name: row for row, name in enumerate(n for group in groups for n in group.names)}
        self._group_stacks: dict[str, GroupStack] = {}
        self._scale_S = torch.zeros(num_slots, device=device)
        self._rank_LS = torch.zeros(len(self._row_of), num_slots, dtype=torch.int32, device=device)
        self._tiles: tuple[tuple[Segment, ...], RowTiles] | None = None
        self._held = [_NOTHING] * num_slots
        self._target_tables: dict[tuple[str, ...], NDArray[np.int64]] = {}
        # Made here: a capture may not begin with what the driver allocates.
        self._side = torch.cuda.Stream(device, priority=SHRINK_PRIORITY) if device.type == "cuda" else None

    def write(self, slot: int, adapter: AdapterWeights) -> None:
        held = _Held(tuple(adapter.pairs), adapter.rank, adapter.scale)
        if held != self._held[slot]:  # else every value is overwritten, and what pads the rank is zero
            self.clear(slot)
            self._hold(slot, held)
        self.refill(slot, adapter.pairs)

    def _hold(self, slot: int, held: _Held) -> None:
        """Make room for an adapter in an empty slot."""
        if held.rank > self._max_rank:
            self._grow(held.rank)
        for name in held.names:
            self._stack(name)
        rank_L = torch.zeros(len(self._row_of), dtype=torch.int32)
        rank_L[[self._row_of[name] for name in held.names]] = held.rank
        self._rank_LS[:, slot] = rank_L.to(self._device)
        self._scale_S[slot] = held.scale
        self._held[slot] = held

    def refill(self, slot: int, pairs: Mapping[str, LoraPair]) -> None:
        """Overwrite factors that the slot already has; in one launch where the pairs are on the bank's device."""
        if not pairs:
            return
        held = self._held[slot]
        assert set(pairs) <= set(held.names)
        sources = [part for pair in pairs.values() for part in (pair.a_RD, pair.b_OR)]
        kept = [source.to(self._device, non_blocking=True).contiguous() for source in sources]
        assert len({values.dtype for values in kept}) == 1
        assert all(pair.a_RD.shape[0] == held.rank for pair in pairs.values())
        first_M, slot_bytes_M, wide_M, stride_M = self._targets(tuple(pairs)).T
        length_M = np.where(wide_M > 0, wide_M, held.rank)
        source_M = [values.data_ptr() for values in kept]
        num_values_M = [values.numel() for values in kept]
        table_M5 = np.stack([source_M, first_M + slot * slot_bytes_M, num_values_M, length_M, stride_M], 1)
        self.ops.copy(torch.from_numpy(table_M5).to(self._device), kept[0].dtype, self._dtype)

    def _targets(self, names: tuple[str, ...]) -> NDArray[np.int64]:
        """Of the A and B of each linear: address in slot 0, bytes of a slot, row length (0: the rank), row stride."""
        if names not in self._target_tables:
            rows: list[tuple[int, int, int, int]] = []
            for name in names:
                a_SRD, b_SOR = self._stacks[name]
                for stack, length in ((a_SRD, a_SRD.shape[2]), (b_SOR, 0)):
                    rows.append((stack.data_ptr(), stack.stride(0) * stack.element_size(), length, stack.stride(1)))
            self._target_tables[names] = np.array(rows, np.int64)
        return self._target_tables[names]

    def factors(self, slot: int, name: str) -> SlotFactors | None:
        if slot == BASE_SLOT:
            return None
        made, held = self._slots[slot], self._held[slot]
        if name not in made and name in held.names:
            made[name] = self._view(name, slot, held.rank, held.scale)
        return made.get(name)

    def clear(self, slot: int) -> None:
        names = self._held[slot].names
        if names:
            # Whole slots of the stacks, also what pads the rank: it is read up to the next multiple of 16.
            leads = {self._group_of[name].names[0] for name in names}
            stacks = [self._group_stacks[lead] for lead in leads]
            parts = [part for each in stacks for part in (each.a_SND[slot], each.b_SOR[slot])]
            torch._foreach_zero_(parts)  # pyright: ignore[reportPrivateImportUsage]
            self._rank_LS[:, slot] = 0
        self._held[slot], self._slots[slot] = _NOTHING, {}

    def product(self, fused: FusedLinear, x_TD: Tensor, segments: tuple[Segment, ...]) -> tuple[Tensor, ...]:
        return self.fused_product(fused, x_TD, self.tiles(segments))

    def fused_product(self, fused: FusedLinear, x_TD: Tensor, tiles: RowTiles) -> tuple[Tensor, ...]:
        """The outputs of a group's linears with the adapters of the tiles' slots; not differentiable."""
        stack = self._group_stacks.get(fused.group.names[0])
        if stack is None:
            return fused.base(x_TD).split(fused.group.outputs, 1)
        if self._side is not None and tiles.tile_rows == DECODE_TILE_ROWS and torch.cuda.is_current_stream_capturing():
            y_TO, xa_KTN = self._base_beside_shrink(self._side, stack, fused, x_TD, tiles)
        else:
            y_TO = fused.base(x_TD)
            xa_KTN = self.ops.shrink(stack, x_TD, tiles)
        self.ops.expand(stack, xa_KTN, y_TO, tiles)
        return y_TO.split(fused.group.outputs, 1)

    def _base_beside_shrink(
        self, side: torch.cuda.Stream, stack: GroupStack, fused: FusedLinear, x_TD: Tensor, tiles: RowTiles
    ) -> tuple[Tensor, Tensor]:
        """The base product and x A^T as two branches of the graph being captured, which are one again at the end.

        Memory needs no more care: x is held by the caller until then, and what the side stream allocated is used again
        only on the side stream, behind the next fork, which comes after the expand that reads it.
        """
        main = torch.cuda.current_stream(self._device)
        side.wait_stream(main)
        try:
            with torch.cuda.stream(side):
                xa_KTN = self.ops.shrink(stack, x_TD, tiles)
            return fused.base(x_TD), xa_KTN
        finally:
            main.wait_stream(side)  # also where memory is short: a capture with an open branch fails for good

    def add(self, lead: str, x_TD: Tensor, y_TO: Tensor, tiles: RowTiles) -> None:
        """Add the products of a group to its outputs, in place."""
        stack = self._group_stacks.get(lead)
        if stack is not None:
            self.ops.expand(stack, self.ops.shrink(stack, x_TD, tiles), y_TO, tiles)

    def tiles(self, segments: tuple[Segment, ...]) -> RowTiles:
        """Tiles of the segments; made once for the layers of a pass."""
        if self._tiles is None or self._tiles[0] is not segments:
            tiles = RowTiles.of(merge_by_slot(segments), TRAINING_TILE_ROWS, self._device)
            self._tiles = segments, tiles
        return self._tiles[1]

    def with_tiles(self, tiles: RowTiles) -> "TiledAdapters":
        """Adapters of whatever the tables say when the kernels run; see lora_kernels."""
        return TiledAdapters(self, tiles)

    def stack_of(self, lead: str) -> GroupStack | None:
        """The stacks of a group; None where no slot has had an adapter of it."""
        return self._group_stacks.get(lead)

    def row_of(self, name: str) -> int:
        """The row of a linear in the table of addresses."""
        return self._row_of[name]

    def gradient_table(
        self, addresses: Sequence[Mapping[str, tuple[int, int]]], segments: Sequence[Segment]
    ) -> GradientTable:
        """Where the gradients of the segments' jobs go; `addresses`: of each job's staged dA and dB, by linear."""
        address_LJ2 = torch.zeros(len(self._row_of), max(len(addresses), 1), 2, dtype=torch.int64)
        for job, of_job in enumerate(addresses):
            if of_job:
                rows = torch.tensor([self._row_of[name] for name in of_job])
                address_LJ2[rows, job] = torch.tensor(list(of_job.values()))
        return GradientTable.of(segments, address_LJ2, self._device)

    def _stack(self, name: str) -> tuple[Tensor, Tensor]:
        if name not in self._stacks:
            self._add_stacks(self._group_of[name])
        return self._stacks[name]

    def _add_stacks(self, group: LinearGroup) -> None:
        self.generation += 1
        self._target_tables.clear()
        rank, lead = self._max_rank, group.names[0]
        size = (self.num_slots, rank * len(group.names), group.num_inputs)
        a_SND = torch.zeros(size, dtype=self._dtype, device=self._device)
        size = (self.num_slots, sum(group.outputs), rank)
        b_SOR = torch.zeros(size, dtype=self._dtype, device=self._device)
        row = self._row_of[lead]
        rank_GS = self._rank_LS[row : row + len(group.names)]
        self._group_stacks[lead] = GroupStack(a_SND, b_SOR, self._scale_S, rank_GS, group.outputs)
        parts = zip(group.names, a_SND.split(rank, 1), b_SOR.split(group.outputs, 1), strict=True)
        self._stacks.update({name: (a_SRD, b_SOR) for name, a_SRD, b_SOR in parts})

    def _grow(self, max_rank: int) -> None:
        """Group by group, so that the old stacks of one at a time are held twice."""
        self._max_rank = -(-max_rank // RANK_MULTIPLE) * RANK_MULTIPLE
        self._slots = [{} for _ in self._slots]
        for lead in list(self._group_stacks):
            group = self._groups[lead]
            old = {name: self._stacks.pop(name) for name in group.names}
            self._add_stacks(group)
            for name, (old_a_SRD, old_b_SOR) in old.items():
                a_SRD, b_SOR = self._stacks[name]
                a_SRD[:, : old_a_SRD.shape[1]].copy_(old_a_SRD)
                b_SOR[:, :, : old_b_SOR.shape[2]].copy_(old_b_SOR)


class TiledAdapters(GroupAdapters):
    """Adapters whose rows are said by tables on the device alone; segments are ignored."""

    def __init__(self, bank: GroupedBank, tiles: RowTiles) -> None:
        self._bank = bank
        self._tiles = tiles

    def apply(self, name: str, x_TD: Tensor, y_TO: Tensor, segments: tuple[Segment, ...]) -> Tensor:
        """Adds in place; the head's y may be fp32."""
        del segments
        self._bank.add(name, x_TD, y_TO, self._tiles)
        return y_TO

    def product(self, fused: FusedLinear, x_TD: Tensor, segments: tuple[Segment, ...]) -> tuple[Tensor, ...]:
        del segments
        return self._bank.fused_product(fused, x_TD, self._tiles)


class StagedSink(GradientSink, Protocol):
    """A sink whose gradients lie in buffers that kernels may add to."""

    def addresses(self) -> Sequence[Mapping[str, tuple[int, int]]]:
        """Of each job's staged dA and dB (fp32, contiguous), by linear; none for a job that takes no gradients."""
        ...


class GroupedTrainingAdapters(TrainingAdapters, GroupAdapters):
    """See TrainingAdapters: kernels add the gradients of fused linears to the sink's buffers."""

    def __init__(self, bank: GroupedBank, sink: StagedSink, device: torch.device) -> None:
        super().__init__(bank, sink, device)
        self.grouped = bank
        self._staged = sink
        self._table: tuple[tuple[Segment, ...], GradientTable] | None = None

    def product(self, fused: FusedLinear, x_TD: Tensor, segments: tuple[Segment, ...]) -> tuple[Tensor, ...]:
        names = fused.group.names
        slots = {segment.slot for segment in segments} - {BASE_SLOT}
        if all(self.bank.factors(slot, name) is None for slot in slots for name in names):
            return fused.base(x_TD).split(fused.group.outputs, 1)
        result: Any = _FusedProduct.apply(x_TD, self.anchor, self, fused, segments)
        return result

    def table(self, segments: tuple[Segment, ...]) -> GradientTable:
        """Where the gradients of the segments go; made once for the layers of a pass."""
        if self._table is None or self._table[0] is not segments:
            self._table = segments, self.grouped.gradient_table(self._staged.addresses(), segments)
        return self._table[1]


class _FusedProduct(Function):
    """x W^T + scale (x A^T) B^T of a group of linears; gradients of A and B go to the jobs' buffers."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        anchor: Tensor,
        adapters: GroupedTrainingAdapters,
        fused: FusedLinear,
        segments: tuple[Segment, ...],
    ) -> tuple[Tensor, ...]:
        del anchor
        bank = adapters.grouped
        stack, tiles, x_TD = bank.stack_of(fused.group.names[0]), bank.tiles(segments), x_TD.contiguous()
        assert stack is not None
        y_TO = fused.base(x_TD)
        xa_1TN = bank.ops.shrink(stack, x_TD, tiles)
        bank.ops.expand(stack, xa_1TN, y_TO, tiles)
        ctx.save_for_backward(x_TD, xa_1TN)
        ctx.adapters, ctx.fused, ctx.segments = adapters, fused, segments
        # Not views for autograd: their gradients come one by one, and nobody pads and adds them up.
        return tuple(torch.unsafe_split_with_sizes(y_TO, fused.group.outputs, 1))

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Any) -> Any:
        saved: Any = ctx
        adapters: GroupedTrainingAdapters = saved.adapters
        fused: FusedLinear = saved.fused
        x_TD, xa_1TN = saved.saved_tensors
        bank, lead = adapters.grouped, fused.group.names[0]
        stack, tiles = bank.stack_of(lead), bank.tiles(saved.segments)
        assert stack is not None
        g_parts = tuple(_aligned(g_TO) for g_TO in grads)
        gb_1TN = bank.ops.shrink_grads(stack, g_parts, tiles)
        table = adapters.table(saved.segments)
        bank.ops.add_grads(stack, x_TD, g_parts, xa_1TN, gb_1TN, table, bank.row_of(lead))
        dx_TD = None
        if saved.needs_input_grad[0]:
            dx_TD = fused.input_gradient(g_parts)
            bank.ops.expand_grads(stack, gb_1TN, dx_TD, tiles)
        return dx_TD, None, None, None, None


def _aligned(g_TO: Tensor) -> Tensor:
    """Rows of consecutive values, each at a multiple of 16 bytes."""
    multiple = 16 // g_TO.element_size()
    is_aligned = g_TO.stride(1) == 1 and g_TO.stride(0) % multiple == 0 and g_TO.data_ptr() % 16 == 0
    return g_TO if is_aligned else g_TO.contiguous()
