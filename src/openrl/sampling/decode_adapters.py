"""The adapters of sequences that decode together, for graphs and without them; see decode_graph.DecodeAdapters."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

from openrl.model.batch import BASE_SLOT, Adapters, Segment
from openrl.model.lora import AdapterBank
from openrl.model.lora_tiles import DECODE_TILE_ROWS, RowTiles


@runtime_checkable
class TiledBank(Protocol):
    """A bank whose kernels read on the device which rows use which slot."""

    generation: int

    def with_tiles(self, tiles: RowTiles) -> Adapters:
        """Adapters of whatever the tables say when the kernels run."""
        ...


class TileAdapters:
    """Tables for each bucket of rows, at addresses that stay."""

    can_capture = True

    def __init__(self, bank: TiledBank, num_slots: int, device: torch.device) -> None:
        self._bank = bank
        self._num_slots = num_slots
        self._device = device
        self._tiles: dict[int, RowTiles] = {}  # by rows

    @property
    def generation(self) -> int:
        return self._bank.generation

    def of_bucket(self, num_rows: int) -> Adapters:
        return self._bank.with_tiles(self._tiles[num_rows])

    def refill(self, num_rows: int, segments: Sequence[Segment]) -> None:
        if num_rows not in self._tiles:
            # Every slot may end in a tile that is not full; no tile is empty.
            num_tiles = min(num_rows, num_rows // DECODE_TILE_ROWS + self._num_slots)
            self._tiles[num_rows] = RowTiles.empty(num_tiles, DECODE_TILE_ROWS, self._device)
        self._tiles[num_rows].refill([segment for segment in segments if segment.slot != BASE_SLOT])


class SegmentAdapters:
    """Adapters that find their rows in a batch's segments: each step anew, so that no graph holds them."""

    can_capture = False
    generation = 0

    def __init__(self, bank: AdapterBank) -> None:
        self._bank = bank

    def of_bucket(self, num_rows: int) -> AdapterBank:
        del num_rows
        return self._bank

    def refill(self, num_rows: int, segments: Sequence[Segment]) -> None:
        del num_rows, segments


def decode_adapters(bank: AdapterBank, device: torch.device) -> TileAdapters | SegmentAdapters:
    """The best that the bank can do."""
    return TileAdapters(bank, bank.num_slots, device) if isinstance(bank, TiledBank) else SegmentAdapters(bank)
