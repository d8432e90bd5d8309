"""Zeros cost nothing until they are written; what is freed goes back."""

import resource
from pathlib import Path

import torch

from openrl.model.memory import clear_lazily, lazy_zeros, release_freed_memory


def test_memory_is_taken_only_where_it_is_written():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    table = lazy_zeros((64, 2**20), torch.float32, torch.device("cpu"))
    table[3] = 1.0
    grown_bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown_bytes < 64 * 2**20
    assert table[3].min() == 1.0
    assert not table[2].any()


def test_every_compute_type_and_shape_works():
    for dtype in (torch.float32, torch.bfloat16):
        table = lazy_zeros((3, 5, 7), dtype, torch.device("cpu"))
        assert (table.dtype, tuple(table.shape), bool(table.any())) == (dtype, (3, 5, 7), False)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_tables_do_not_take_what_others_have_freed_and_one_slot_costs_one_slot():
    freed = [torch.ones(2**20) for _ in range(16)]
    del freed
    before = resident_bytes()
    tables = [lazy_zeros((64, 2**16), torch.float32, torch.device("cpu")) for _ in range(8)]  # 128 MiB
    for table in tables:
        table[0, :8] = 1.0
    assert resident_bytes() - before < 2**20


def test_a_part_that_is_cleared_is_zero_costs_nothing_and_leaves_its_neighbours_alone():
    for shape in ((5, 1000, 7), (5, 3), (3, 2**22)):
        table = lazy_zeros(shape, torch.float32, torch.device("cpu"))
        table.fill_(1.0)
        before = resident_bytes()
        clear_lazily(table[1])
        assert before - resident_bytes() > table[1].numel() * 4 - 2**20
        assert not table[1].any()
        assert table[0].min() == table[2].min() == 1.0
        table[1] = 2.0
        assert table[1].min() == table[1].max() == 2.0


def test_giving_memory_back_makes_the_process_smaller():
    kept = [bytes(100_000) for _ in range(1000)]
    before = resident_bytes()
    del kept[:-1]  # the last one keeps the end of the heap in use
    release_freed_memory()
    assert resident_bytes() < before - 50_000_000
