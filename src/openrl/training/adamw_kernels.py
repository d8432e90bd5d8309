"""AdamW on CUDA: one launch for a run, which writes the copy that the model computes with as well.

Legend: P parameters of one run, N tiles.

Read are weight, moments and gradient, written weight, moments and copy: 30 bytes a parameter in bf16.
"""
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportArgumentType=false, reportCallIssue=false

import math
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int64
from torch import Tensor

from openrl.model.lora import AdapterBank
from openrl.training.base import AdamParams
from openrl.training.gradients import FlatLayout
from openrl.training.runs import TrainingRun

TILE = 2048
NUM_WARPS = 8
DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def adamw_kernel(
    weights_P,
    gradients_P,
    exp_avg_P,
    exp_avg_sq_P,
    tiles_N6,
    clip,
    decay,
    lerp,
    beta2,
    square,
    step_size,
    root,
    eps,
    copy_type: tl.constexpr,
    is_aligned: tl.constexpr,
    tile: tl.constexpr,
):
    """One tile of one factor; `tiles_N6` as in `copy_tiles`."""
    row = tiles_N6 + 6 * tl.program_id(0)
    start = tl.load(row)
    end = tl.load(row + 1)
    factor_start = tl.load(row + 2)
    num_columns = tl.load(row + 3)
    row_stride = tl.load(row + 4)
    copy = tl.load(row + 5).to(tl.pointer_type(copy_type))
    if is_aligned:
        start = tl.multiple_of(start, 16)
        end = tl.multiple_of(end, 16)
        factor_start = tl.multiple_of(factor_start, 16)
    places = start + tl.arange(0, tile)
    keep = places < end
    gradient = tl.load(gradients_P + places, mask=keep, other=0.0) * clip
    average = tl.load(exp_avg_P + places, mask=keep, other=0.0)
    squares = tl.load(exp_avg_sq_P + places, mask=keep, other=0.0)
    weight = tl.load(weights_P + places, mask=keep, other=0.0)
    average += (gradient - average) * lerp
    squares = squares * beta2 + gradient * gradient * square
    weight = weight * decay - step_size * (average / (tl.sqrt(squares) / root + eps))
    tl.store(exp_avg_P + places, average, mask=keep)
    tl.store(exp_avg_sq_P + places, squares, mask=keep)
    tl.store(weights_P + places, weight, mask=keep)
    inside = places - factor_start
    if num_columns == row_stride:
        tl.store(copy + inside, weight.to(copy_type), mask=keep)
    else:
        inside_32, columns = inside.to(tl.int32), num_columns.to(tl.int32)
        targets = (inside_32 // columns).to(tl.int64) * row_stride + inside_32 % columns
        tl.store(copy + targets, weight.to(copy_type), mask=keep)


@dataclass(frozen=True, slots=True)
class CopyTiles:
    """Where the tiles of a run lie in its flat buffers, and where their copies go."""

    layout: FlatLayout
    origin: tuple[int, ...]  # tells whether the bank has moved
    tiles_N6: Int64[Tensor, "N 6"]
    is_aligned: bool


class FusedAdamW:
    """Steps runs that have a slot of the bank; see UpdateAdamW."""

    def __init__(self, bank: AdapterBank, dtype: torch.dtype, device: torch.device) -> None:
        self._bank = bank
        self._dtype = dtype
        self._device = device
        self._tiles: dict[int, CopyTiles] = {}  # by slot

    @torch.no_grad()
    def __call__(self, run: TrainingRun, slot: int, params: AdamParams, clip: float) -> None:
        """Update weights, moments and the slot's copy by the run's gradient, times `clip`."""
        assert run.gradients_P is not None, "the step is checked"
        assert run.exp_avg_sq_P is not None, "the family is checked"
        tiles = self._tiles_of(run.layout, slot)
        if tiles is None:
            return
        step = run.num_steps + 1
        adamw_kernel[(tiles.tiles_N6.shape[0],)](
            run.weights_P,
            run.gradients_P,
            run.exp_avg_P,
            run.exp_avg_sq_P,
            tiles.tiles_N6,
            clip,
            1 - params.learning_rate * params.weight_decay,
            1 - params.beta1,
            params.beta2,
            1 - params.beta2,
            params.learning_rate / (1 - params.beta1**step),
            math.sqrt(1 - params.beta2**step),
            params.eps,
            copy_type=DTYPES[self._dtype],
            is_aligned=tiles.is_aligned,
            tile=TILE,
            num_warps=NUM_WARPS,
        )

    def _tiles_of(self, layout: FlatLayout, slot: int) -> CopyTiles | None:
        """None for a run without parameters."""
        first = next(iter(layout.shapes), None)
        if first is None:
            return None
        factors = self._bank.factors(slot, first)
        assert factors is not None, "the run has the slot"
        # All stacks move together, when a larger rank comes; the stride is the largest rank.
        origin = (factors.a_RD.data_ptr(), factors.b_OR.data_ptr(), factors.b_OR.stride(0))
        known = self._tiles.get(slot)
        if known is None or known.origin != origin or known.layout != layout:
            known = self._tiles[slot] = self._measure(layout, slot, origin)
        return known

    def _measure(self, layout: FlatLayout, slot: int, origin: tuple[int, ...]) -> CopyTiles:
        targets: list[Tensor] = []
        for name in layout.shapes:
            factors = self._bank.factors(slot, name)
            assert factors is not None, "the slot holds all of the run's factors"
            targets += [factors.a_RD, factors.b_OR]
        tiles_N6 = copy_tiles(targets)
        is_aligned = not (tiles_N6[:, :3] % 16).any()
        return CopyTiles(layout, origin, torch.from_numpy(tiles_N6).to(self._device), is_aligned)


def copy_tiles(targets: list[Float[Tensor, "_ _"]]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """For factors that follow each other in a flat buffer, a row for each tile of at most TILE parameters.

    Start and end of the tile and start of its factor in the buffer; columns, row stride and address of the target.
    """
    rows: list[np.ndarray[tuple[int, int], np.dtype[np.int64]]] = []
    factor_start = 0
    for target in targets:
        size, num_columns = target.numel(), target.shape[1]
        assert target.stride(1) == 1, "rows of factors are contiguous"
        starts = np.arange(factor_start, factor_start + size, TILE, dtype=np.int64)
        part = np.empty((len(starts), 6), np.int64)
        part[:, 0], part[:, 1] = starts, np.minimum(starts + TILE, factor_start + size)
        part[:, 2:] = factor_start, num_columns, target.stride(0), target.data_ptr()
        rows.append(part)
        factor_start += size
    return np.concatenate(rows)
