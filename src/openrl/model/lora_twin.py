"""What the LoRA kernels compute, in plain torch on the host: slow, and easy to check.

Legend: see lora_kernels; L rows of one tile or piece.
"""

import ctypes

import torch
from torch import Tensor

from openrl.model.lora_tiles import GradientTable, GroupStack, RowTiles


class TorchLora:
    """The products of one group over tiles of rows, each of one slot."""

    def shrink(self, stack: GroupStack, x_TD: Tensor, tiles: RowTiles) -> Tensor:
        """x A^T of every tile's slot, as [splits, T, N]; rows of no tile hold anything."""
        xa_1TN = x_TD.new_zeros(1, x_TD.shape[0], stack.columns)
        for slot, rows in _tiles(tiles):
            a_ND = stack.a_SND[slot] * _used(stack, slot)[:, None]
            xa_1TN[0, rows] = (x_TD[rows].float() @ a_ND.float().t()).to(x_TD.dtype)
        return xa_1TN

    def expand(self, stack: GroupStack, xa_KTN: Tensor, y_TO: Tensor, tiles: RowTiles) -> None:
        """y += scale xa B^T, in place."""
        xa_TN = xa_KTN.float().sum(0).to(stack.b_SOR.dtype)
        for slot, rows in _tiles(tiles):
            parts = zip(xa_TN[rows].split(stack.rank, 1), stack.b_SOR[slot].split(stack.outputs), strict=True)
            delta_LO = torch.cat([xa_LR.float() @ b_OR.float().t() for xa_LR, b_OR in parts], 1)
            y_TO[rows] = (y_TO[rows].float() + delta_LO * stack.scale_S[slot]).to(y_TO.dtype)

    def shrink_grads(self, stack: GroupStack, grads: tuple[Tensor, ...], tiles: RowTiles) -> Tensor:
        """scale g B, as [1, T, N]; `grads`: of each linear's output."""
        gb_1TN = grads[0].new_zeros(1, grads[0].shape[0], stack.columns)
        for slot, rows in _tiles(tiles):
            parts = zip(grads, stack.b_SOR[slot].split(stack.outputs), strict=True)
            gb_LN = torch.cat([g_TO[rows].float() @ b_OR.float() for g_TO, b_OR in parts], 1)
            gb_1TN[0, rows] = (gb_LN * _used(stack, slot) * stack.scale_S[slot]).to(gb_1TN.dtype)
        return gb_1TN

    def expand_grads(self, stack: GroupStack, gb_1TN: Tensor, dx_TD: Tensor, tiles: RowTiles) -> None:
        """dx += gb A, in place."""
        for slot, rows in _tiles(tiles):
            delta_LD = gb_1TN[0, rows].float() @ stack.a_SND[slot].float()
            dx_TD[rows] = (dx_TD[rows].float() + delta_LD).to(dx_TD.dtype)

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
        for job, slot, first, length in _pieces(table):
            rows = slice(first, first + length)
            for part, (g_TO, num_outputs) in enumerate(zip(grads, stack.outputs, strict=True)):
                rank = int(stack.rank_GS[part, slot])
                da_at, db_at = table.address_LJ2[linear + part, job].tolist()
                columns = slice(part * stack.rank, part * stack.rank + rank)
                da_RD = gb_1TN[0, rows, columns].float().t() @ x_TD[rows].float()
                db_OR = g_TO[rows].float().t() @ xa_1TN[0, rows, columns].float() * stack.scale_S[slot]
                for at, gradient in ((da_at, da_RD), (db_at, db_OR)):
                    if at and gradient.numel():
                        tensor_at(at, gradient.numel(), torch.float32).view_as(gradient).add_(gradient)
                assert db_OR.shape[0] == num_outputs

    def copy(self, table_M5: Tensor, source: torch.dtype, target: torch.dtype) -> None:
        """Copy matrices; table rows: source, target, number of values, row length, the target's row stride."""
        for from_at, to_at, num_values, length, stride in table_M5.tolist():
            num_rows = num_values // length
            values = tensor_at(from_at, num_values, source).view(num_rows, length)
            to = tensor_at(to_at, (num_rows - 1) * stride + length, target)
            to.as_strided((num_rows, length), (stride, 1)).copy_(values)


def tensor_at(address: int, num_values: int, dtype: torch.dtype) -> Tensor:
    """The values at an address of the host, not copied."""
    values = (ctypes.c_char * (num_values * dtype.itemsize)).from_address(address)
    return torch.frombuffer(values, dtype=dtype)


def _pieces(table: GradientTable) -> list[tuple[int, int, int, int]]:
    """(job, slot, first row, rows), in order."""
    pieces = table.pieces_2P.t().tolist()
    return [
        (job, slot, *piece)
        for job, (slot, first, count) in enumerate(table.jobs_3J.t().tolist())
        for piece in pieces[first : first + count]
    ]


def _tiles(tiles: RowTiles) -> list[tuple[int, slice]]:
    table = tiles.table_3N.t().tolist()
    return [(slot, slice(first, first + length)) for slot, first, length in table if slot >= 0 and length]


def _used(stack: GroupStack, slot: int) -> Tensor:
    """1 for the columns within the slot's rank, else 0."""
    column_R = torch.arange(stack.rank)
    used_GR = column_R[None] < stack.rank_GS[:, slot, None]
    return used_GR.flatten().float()
