"""The adapters of sequences that decode together, for graphs and without them; see decode_graph.DecodeAdapters."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

from openrl.model.batch import BASE_SLOT, Adapters, Segment
from openrl.model.lora import AdapterBank
from openrl.model.lora_tiles import DECODE_TILE_ROWS, RowTiles

FEWEST_TILES = 8
"""Of a bucket: fewer take as long."""


@runtime_checkable
class TiledBank(Protocol):
    """A bank whose kernels read on the device which rows use which slot."""

    generation: int

    def with_tiles(self, tiles: RowTiles) -> Adapters:
        """Adapters of whatever the tables say when the kernels run."""
        ...


class TileAdapters:
    """Tables for each bucket of tiles, at addresses that stay.

    Buckets are powers of two: programs of empty tiles end at once, but thousands of them take a kernel's time again.
    """

    can_capture = True

    def __init__(self, bank: TiledBank, device: torch.device) -> None:
        self._bank = bank
        self._device = device
        self._tiles: dict[int, RowTiles] = {}  # by their number

    @property
    def generation(self) -> int:
        return self._bank.generation

    def of_bucket(self, num_tiles: int) -> Adapters:
        return self._bank.with_tiles(self._tiles[num_tiles])

    def refill(self, segments: Sequence[Segment]) -> int:
        num_used = sum(-(-each.length // DECODE_TILE_ROWS) for each in segments if each.slot != BASE_SLOT)
        num_tiles = max(FEWEST_TILES, 1 << (num_used - 1).bit_length())
        if num_tiles not in self._tiles:
            self._tiles[num_tiles] = RowTiles.empty(num_tiles, DECODE_TILE_ROWS, self._device)
        self._tiles[num_tiles].refill(segments)
        return num_tiles


class SegmentAdapters:
    """Adapters that find their rows in a batch's segments: each step anew, so that no graph holds them."""

    can_capture = False
    generation = 0

    def __init__(self, bank: AdapterBank) -> None:
        self._bank = bank

    def of_bucket(self, num_tiles: int) -> AdapterBank:
        del num_tiles
        return self._bank

    def refill(self, segments: Sequence[Segment]) -> int:
        return len(segments)


def decode_adapters(bank: AdapterBank, device: torch.device) -> TileAdapters | SegmentAdapters:
    """The best that the bank can do."""
    return TileAdapters(bank, device) if isinstance(bank, TiledBank) else SegmentAdapters(bank)
