"""Launches the LoRA kernels with fixed configurations by shape; see lora_kernels."""

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from openrl.model import lora_kernels
from openrl.model.lora_tiles import DECODE_TILE_ROWS, GradientTable, GroupStack, RowTiles

DECODE_SPLITS = 8
"""The most parts of a sum over inputs that are computed side by side where rows are few; an expand reads them all."""
DECODE_INPUTS = 512
"""The fewest inputs of a part: four steps of a program's loop, whose loads are all on their way at once."""
WIDE_OUTPUTS = 4096
"""From here on there are programs enough for wide blocks of outputs where rows are few."""
DECODE_BLOCKS = (128, 256)
"""Outputs of a program of the expand where rows are few: of narrow groups, of wide ones."""
DECODE_WARPS = 4
"""Of such a program."""
DECODE_STAGES = 4
"""Tiles of a shrink's loop that are on their way at once where rows are few, one less."""

GRAD_BLOCK = 64
COPY_BLOCK = 1024
COPY_PROGRAMS = 16

# Typed as functions; a launch takes the grid in brackets, and options of the compiler.
_SHRINK_KERNEL: Any = lora_kernels.shrink_kernel
_EXPAND_KERNEL: Any = lora_kernels.expand_kernel
_GRAD_KERNEL: Any = lora_kernels.grad_kernel
_COPY_KERNEL: Any = lora_kernels.copy_kernel


class TritonLora:
    """See lora_twin.TorchLora, its slow twin."""

    def shrink(self, stack: GroupStack, x_TD: Tensor, tiles: RowTiles) -> Tensor:
        """x A^T of every tile's slot, as [splits, T, N]: in the compute type where there is one split, else fp32."""
        split = split_length(stack.num_inputs) if tiles.tile_rows == DECODE_TILE_ROWS else 0
        splits = _blocks(stack.num_inputs, split) if split else 1
        dtype = torch.float32 if split else x_TD.dtype
        xa_KTN = torch.empty(splits, x_TD.shape[0], stack.columns, dtype=dtype, device=x_TD.device)
        a_SND = stack.a_SND
        _shrink(stack, (x_TD,), a_SND, (a_SND.stride(0), 1, a_SND.stride(1)), xa_KTN, tiles, split, scaled=False)
        return xa_KTN

    def expand(self, stack: GroupStack, xa_KTN: Tensor, y_TO: Tensor, tiles: RowTiles) -> None:
        """y += scale xa B^T, in place."""
        b_SOR = stack.b_SOR
        strides = (b_SOR.stride(0), b_SOR.stride(1), 1)
        _expand(stack, xa_KTN, b_SOR, strides, y_TO, stack.outputs, stack.rank, tiles, scaled=True)

    def shrink_grads(self, stack: GroupStack, grads: tuple[Tensor, ...], tiles: RowTiles) -> Tensor:
        """scale g B, as [1, T, N]; `grads`: of each linear's output."""
        first, b_SOR = grads[0], stack.b_SOR
        gb_1TN = torch.empty(1, first.shape[0], stack.columns, dtype=first.dtype, device=first.device)
        _shrink(stack, grads, b_SOR, (b_SOR.stride(0), b_SOR.stride(1), 1), gb_1TN, tiles, 0, scaled=True)
        return gb_1TN

    def expand_grads(self, stack: GroupStack, gb_1TN: Tensor, dx_TD: Tensor, tiles: RowTiles) -> None:
        """dx += gb A, in place."""
        a_SND = stack.a_SND
        strides = (a_SND.stride(0), 1, a_SND.stride(1))
        _expand(stack, gb_1TN, a_SND, strides, dx_TD, (stack.num_inputs,), stack.columns, tiles, scaled=False)

    def add_grads(
        self,
        stack: GroupStack,
        x_TD: Tensor,
        grads: tuple[Tensor, ...],
        xa_1TN: Tensor,
        gb_1TN: Tensor,
        table: GradientTable,
        linear: int,
    ) -> None:
        """Add dA and dB to the staged gradients of the jobs; `linear`: the group's first row in the address table."""
        g0, g1, g2 = _three(grads)
        c0, c1, c2 = (*stack.outputs, 0, 0)[:3]
        _GRAD_KERNEL[(_num_grad_blocks(stack), table.num_jobs)](
            x_TD, g0, g1, g2, xa_1TN, gb_1TN, stack.scale_S, stack.rank_GS,
            table.jobs_3J, table.pieces_2P, table.address_LJ2[linear],
            table.num_pieces, table.num_jobs, stack.scale_S.shape[0], stack.columns, stack.rank,
            stack.num_inputs, c0, c1, c2,
            x_TD.stride(0), g0.stride(0), g1.stride(0), g2.stride(0),
            BLOCK_T=64, BLOCK_C=GRAD_BLOCK, BLOCK_NA=_narrow_block(stack.columns), BLOCK_NB=_narrow_block(stack.rank),
            PRECISION=_precision(x_TD), num_warps=8 if stack.columns > 64 else 4, num_stages=_stages(x_TD, 4),
        )  # fmt: skip

    def copy(self, table_M5: Tensor, source: torch.dtype, target: torch.dtype) -> None:
        """Copy matrices in one launch; see copy_kernel for the table."""
        types = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}
        grid = (table_M5.shape[0], COPY_PROGRAMS)
        _COPY_KERNEL[grid](table_M5, BLOCK=COPY_BLOCK, SOURCE=types[source], TARGET=types[target], num_warps=4)


def _num_grad_blocks(stack: GroupStack) -> int:
    """Blocks of one job's dA and dB of a group."""
    blocks_a = _blocks(stack.num_inputs, GRAD_BLOCK) * _blocks(stack.columns, _narrow_block(stack.columns))
    blocks_c = sum(_blocks(c, GRAD_BLOCK) for c in stack.outputs)
    return blocks_a + blocks_c * _blocks(stack.rank, _narrow_block(stack.rank))


def split_length(num_inputs: int) -> int:
    """Inputs that one program sums where rows are few: fixed by the shape, so that results are too."""
    return max(_blocks(_blocks(num_inputs, DECODE_SPLITS), 128) * 128, DECODE_INPUTS)


def _shrink(
    stack: GroupStack,
    inputs: tuple[Tensor, ...],
    weights: Tensor,
    strides: tuple[int, int, int],
    out_KTN: Tensor,
    tiles: RowTiles,
    split: int,
    *,
    scaled: bool,
) -> None:
    x0, x1, x2 = _three(inputs)
    sizes = [each.shape[1] for each in (x0, x1, x2)]
    own = stack.columns if len(inputs) == 1 and not scaled else stack.rank
    is_decode = tiles.tile_rows == DECODE_TILE_ROWS
    block_n = min(_narrow_block(own), 32 if is_decode else 128)
    grid = (tiles.num_tiles, _blocks(own, block_n) * len(inputs), out_KTN.shape[0])
    _SHRINK_KERNEL[grid](
        x0, x1, x2, weights, out_KTN, stack.scale_S, stack.rank_GS, tiles.table_3N,
        tiles.num_tiles, out_KTN.shape[1], stack.scale_S.shape[0], stack.columns, stack.rank,
        *sizes, x0.stride(0), x1.stride(0), x2.stride(0), *strides,
        INPUTS=len(inputs), SCALED=scaled, SPLIT=split,
        BLOCK_T=tiles.tile_rows, BLOCK_N=block_n, BLOCK_K=128 if is_decode and x0.dtype != torch.float32 else 64,
        PRECISION=_precision(x0), num_warps=4, num_stages=_stages(x0, DECODE_STAGES if is_decode else 4),
    )  # fmt: skip


def _expand(
    stack: GroupStack,
    xa_KTN: Tensor,
    weights: Tensor,
    strides: tuple[int, int, int],
    y_TC: Tensor,
    outputs: tuple[int, ...],
    inner: int,
    tiles: RowTiles,
    *,
    scaled: bool,
) -> None:
    assert y_TC.stride(1) == 1
    c0, c1, c2 = (*outputs, 0, 0)[:3]
    splits = xa_KTN.shape[0]
    is_decode = tiles.tile_rows == DECODE_TILE_ROWS
    block_c = DECODE_BLOCKS[sum(outputs) >= WIDE_OUTPUTS] if is_decode else 128
    grid = (tiles.num_tiles, sum(_blocks(c, block_c) for c in outputs))
    _EXPAND_KERNEL[grid](
        xa_KTN, weights, y_TC, stack.scale_S, stack.rank_GS, tiles.table_3N,
        tiles.num_tiles, xa_KTN.shape[1], stack.scale_S.shape[0], stack.columns, stack.rank, c0, c1, c2,
        y_TC.stride(0), *strides,
        INNER=inner, SCALED=scaled, SPLITS=splits, BLOCK_S=1 << (splits - 1).bit_length(),
        BLOCK_T=tiles.tile_rows, BLOCK_C=block_c, BLOCK_N=min(_narrow_block(inner), 64),
        PRECISION=_precision(weights), num_warps=DECODE_WARPS if is_decode else 4,
    )  # fmt: skip


def _three(tensors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The kernels take three; those beyond the last are never read."""
    last = tensors[-1]
    first, second, third = (*tensors, last, last)[:3]
    return first, second, third


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def _narrow_block(width: int) -> int:
    return min(max(1 << (width - 1).bit_length(), 16), 128)


def _precision(x: Tensor) -> str:
    return "ieee" if x.dtype == torch.float32 else "tf32"


def _stages(x: Tensor, num_stages: int) -> int:
    return num_stages if x.dtype != torch.float32 else 2
