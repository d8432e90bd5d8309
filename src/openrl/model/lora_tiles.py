"""Tables on the device that say which rows use which adapter, and where their gradients go.

Legend: T packed rows, D inputs, O outputs, G linears of a group, R rank (padded), S slots, N tiles, P pieces, J jobs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from openrl.model.batch import BASE_SLOT, Segment

DECODE_TILE_ROWS = 16
TRAINING_TILE_ROWS = 64

PIECE_ROWS = 1024
"""Rows whose gradient is summed in one go before it is added to the job's."""


@dataclass(frozen=True, slots=True)
class RowTiles:
    """Tiles of at most `tile_rows` consecutive rows of one slot, on the device.

    `table_3N`: slot (BASE_SLOT: nothing to do), first row, number of rows. A captured graph reads the table each time
    it runs: `refill` changes what it computes.
    """

    table_3N: Int32[Tensor, "3 N"]
    tile_rows: int

    @property
    def num_tiles(self) -> int:
        """Tiles there is room for."""
        return self.table_3N.shape[1]

    @staticmethod
    def empty(num_tiles: int, tile_rows: int, device: torch.device) -> "RowTiles":
        """Room for so many tiles, none of which has anything to do."""
        table_3N = torch.zeros(3, num_tiles, dtype=torch.int32)
        table_3N[0] = BASE_SLOT
        return RowTiles(table_3N.to(device), tile_rows)

    @staticmethod
    def of(segments: Sequence[Segment], tile_rows: int, device: torch.device) -> "RowTiles":
        """Tiles of the segments; there is always at least one."""
        rows = tile_rows_of(segments, tile_rows)
        return RowTiles(
            torch.tensor(rows or [(BASE_SLOT, 0, 0)], dtype=torch.int32).t().contiguous().to(device), tile_rows
        )

    def refill(self, segments: Sequence[Segment]) -> None:
        """Put the tiles of other segments in place of the present ones; they must fit."""
        rows = tile_rows_of(segments, self.tile_rows)
        assert len(rows) <= self.num_tiles
        rows += [(BASE_SLOT, 0, 0)] * (self.num_tiles - len(rows))
        self.table_3N.copy_(torch.tensor(rows, dtype=torch.int32).t())


def tile_rows_of(segments: Sequence[Segment], tile_rows: int) -> list[tuple[int, int, int]]:
    """(slot, first row, rows) of every tile; tiles start where segments start, so neighbours change none."""
    return [
        (segment.slot, start, min(tile_rows, segment.start + segment.length - start))
        for segment in segments
        if segment.slot != BASE_SLOT
        for start in range(segment.start, segment.start + segment.length, tile_rows)
    ]


@dataclass(frozen=True, slots=True)
class GradientTable:
    """Where the gradients of one micro-batch go.

    A piece is at most PIECE_ROWS rows of one segment; the pieces of a job are added to its staged gradients in order.
    """

    jobs_3J: Int32[Tensor, "3 J"]  # slot, first piece, number of pieces
    pieces_2P: Int32[Tensor, "2 P"]  # first row, rows
    address_LJ2: Int64[Tensor, "L J 2"]  # of the staged dA and dB of a linear, fp32; 0: none are wanted

    @property
    def num_jobs(self) -> int:
        """Jobs of the micro-batch, those without rows among them."""
        return self.jobs_3J.shape[1]

    @property
    def num_pieces(self) -> int:
        """Pieces of all jobs."""
        return self.pieces_2P.shape[1]

    @staticmethod
    def of(segments: Sequence[Segment], address_LJ2: Int64[Tensor, "L J 2"], device: torch.device) -> "GradientTable":
        """The pieces of the segments' jobs, and their addresses, on the device."""
        jobs_3J, pieces_2P = _pieces_of(segments, address_LJ2.shape[1])
        return GradientTable(jobs_3J.to(device), pieces_2P.to(device), address_LJ2.to(device))


def _pieces_of(segments: Sequence[Segment], num_jobs: int) -> tuple[Int32[Tensor, "3 J"], Int32[Tensor, "2 P"]]:
    slots = [BASE_SLOT] * num_jobs
    by_job: list[list[tuple[int, int]]] = [[] for _ in range(num_jobs)]
    for segment in segments:
        if segment.slot != BASE_SLOT:
            slots[segment.job] = segment.slot
            stop = segment.start + segment.length
            rows = range(segment.start, stop, PIECE_ROWS)
            by_job[segment.job] += [(at, min(PIECE_ROWS, stop - at)) for at in rows]
    counts = np.array([len(pieces) for pieces in by_job], np.int32)
    jobs_3J = np.stack([np.array(slots, np.int32), np.cumsum(counts, dtype=np.int32) - counts, counts])
    pieces_P2 = np.array([piece for pieces in by_job for piece in pieces] or [(0, 0)], np.int32)
    return torch.from_numpy(jobs_3J), torch.from_numpy(np.ascontiguousarray(pieces_P2.T))


@dataclass(frozen=True, slots=True)
class GroupStack:
    """The adapters of one group of linears that read the same input; see lora_kernels."""

    a_SND: Float[Tensor, "S N D"]  # N = G * R: the A of each linear, R rows each
    b_SOR: Float[Tensor, "S O R"]  # O: the outputs of all linears of the group
    scale_S: Float[Tensor, " S"]  # fp32
    rank_GS: Int32[Tensor, "G S"]  # 0 where the slot does not adapt the linear
    outputs: tuple[int, ...]

    @property
    def rank(self) -> int:
        """The padded rank R."""
        return self.b_SOR.shape[2]

    @property
    def num_inputs(self) -> int:
        """D."""
        return self.a_SND.shape[2]

    @property
    def columns(self) -> int:
        """N = G * R."""
        return self.a_SND.shape[1]
