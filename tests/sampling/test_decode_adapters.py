"""Tables of tiles fit whatever slots the rows of a bucket have."""

import random

import torch

from openrl.model.batch import Adapters, Segment
from openrl.model.lora import merge_by_slot
from openrl.model.lora_tiles import RowTiles
from openrl.sampling.decode_adapters import TileAdapters


class FakeBank:
    generation = 3

    def __init__(self) -> None:
        self.tiles: list[RowTiles] = []

    def with_tiles(self, tiles: RowTiles) -> Adapters:
        self.tiles.append(tiles)
        return self  # pyright: ignore[reportReturnType]


def test_tiles_cover_the_rows_of_every_slot_at_an_address_that_stays():
    draw = random.Random(1)
    bank = FakeBank()
    adapters = TileAdapters(bank, torch.device("cpu"))
    assert adapters.generation == 3
    for num_slots in (1, 3, 64) * 20:
        slots = sorted(draw.randrange(-1, num_slots) for _ in range(96))
        segments = merge_by_slot(Segment(row, 1, slot) for row, slot in enumerate(slots))
        adapters.of_bucket(adapters.refill(segments))
        covered = [-1] * 96
        for slot, first, rows in bank.tiles[-1].table_3N.t().tolist():
            if slot >= 0:
                covered[first : first + rows] = [slot] * rows
        assert covered == slots
    by_size = {(tiles.num_tiles, tiles.table_3N.data_ptr()) for tiles in bank.tiles}
    assert sorted(num_tiles for num_tiles, _ in by_size) == [8, 64]
