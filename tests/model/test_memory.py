"""Zeros that cost nothing until they are written."""

import resource

import torch

from openrl.model.memory import lazy_zeros


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
