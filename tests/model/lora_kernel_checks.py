"""Checks of the LoRA kernels; run as a program where triton must be told to interpret before it is imported."""

import sys
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from openrl.model.batch import Segment
from openrl.model.lora_launch import TritonLora
from openrl.model.lora_tiles import GroupStack, RowTiles
from openrl.model.lora_twin import TorchLora
from tests.model.interpreted_triton import repair_interpreter
from tests.model.lora_cases import random_stack, staged_gradients

SEGMENTS = [
    Segment(0, 33, 0, 0),
    Segment(33, 5, -1, 1),
    Segment(38, 17, 2, 2),
    Segment(55, 1, 0, 0),
    Segment(56, 70, 1, 3),
    Segment(126, 1100, 3, 0),
]
NUM_ROWS = 1231  # the last rows are padding
JOB_SLOTS = [0, 0, 2, 1]
SHAPES = {
    "three": ((80, 48, 24), 96, [[4, 32, 0, 4], [4, 32, 8, 4], [4, 0, 8, 4]]),
    "two": ((72, 72), 1240, [[128, 32, 16, 128], [128, 32, 16, 128]]),
    "one": ((136,), 64, [[11, 48, 3, 11]]),
}


def check_all(device: str) -> None:
    """Every kernel on every shape, type and tile size."""
    for shape, dtype in product(SHAPES, (torch.float32, torch.bfloat16)):
        outputs, num_inputs, ranks = SHAPES[shape]
        stack = random_stack(outputs, num_inputs, ranks, dtype, device)
        check_forward(stack, SEGMENTS[:5], 16)
        check_forward(stack, SEGMENTS, 64)
        check_backward(stack)
    check_copy(device)


def check_forward(stack: GroupStack, segments: list[Segment], tile_rows: int) -> None:
    """y += scale x A^T B^T for rows of tiles; other rows keep their bits."""
    x_TD, y_TO = rows(stack, stack.num_inputs, 1), rows(stack, sum(stack.outputs), 2)
    tiles = RowTiles.empty(30, tile_rows, x_TD.device)
    tiles.refill(segments)
    ours, twin = y_TO.clone(), on_host(y_TO)
    ops = TritonLora()
    ops.expand(stack, ops.shrink(stack, x_TD, tiles), ours, tiles)
    host, host_tiles = host_stack(stack), RowTiles.of(segments, tile_rows, torch.device("cpu"))
    TorchLora().expand(host, TorchLora().shrink(host, on_host(x_TD), host_tiles), twin, host_tiles)
    assert_close(ours, twin)
    assert torch.equal(ours[33:38], y_TO[33:38])
    assert torch.equal(ours[1226:], y_TO[1226:])


def check_backward(stack: GroupStack) -> None:
    """dx, and the gradients of two passes over the same buffers."""
    x_TD, dx_TD = rows(stack, stack.num_inputs, 1), rows(stack, stack.num_inputs, 4)
    grads = tuple(rows(stack, size, 5 + part) for part, size in enumerate(stack.outputs))
    ops, twin, host = TritonLora(), TorchLora(), host_stack(stack)
    segments = [replace(each, slot=0) if each.slot == 3 else each for each in SEGMENTS]
    tiles = RowTiles.of(segments, 64, x_TD.device)
    host_tiles = RowTiles.of(segments, 64, torch.device("cpu"))
    staged = staged_gradients(stack, segments, JOB_SLOTS)
    expected = staged_gradients(host, segments, JOB_SLOTS)
    host_dx, host_grads = on_host(dx_TD), tuple(on_host(each) for each in grads)
    xa, gb = ops.shrink(stack, x_TD, tiles), ops.shrink_grads(stack, grads, tiles)
    ops.expand_grads(stack, gb, dx_TD, tiles)
    host_xa, host_gb = twin.shrink(host, on_host(x_TD), host_tiles), twin.shrink_grads(host, host_grads, host_tiles)
    twin.expand_grads(host, host_gb, host_dx, host_tiles)
    assert_close(dx_TD, host_dx)
    for _ in range(2):
        ops.add_grads(stack, x_TD, grads, xa, gb, staged.table, 0)
        twin.add_grads(host, on_host(x_TD), host_grads, host_xa, host_gb, expected.table, 0)
    for ours, theirs in zip(staged.flats, expected.flats, strict=True):
        assert_close(ours, theirs)


def check_copy(device: str) -> None:
    """Matrices of odd sizes, widened and narrowed."""
    for source, target in product((torch.float32, torch.bfloat16), repeat=2):
        values = torch.randn(37, 11).to(device, source)
        into = torch.full((37, 16), float("nan")).to(device, target)
        entry = [values.data_ptr(), into.data_ptr(), values.numel(), 11, 16]
        TritonLora().copy(torch.tensor([entry], device=device), source, target)
        # Interpreted, bf16 is cut off rather than rounded.
        bound = 0.0 if device == "cuda" or source == target else 2**-7
        assert torch.allclose(into[:, :11].float(), values.to(target).float(), rtol=bound, atol=0.0)
        assert bool(into[:, 11:].isnan().all())


def rows(stack: GroupStack, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NUM_ROWS, width, generator=generator).to(stack.a_SND.device, stack.a_SND.dtype)


def host_stack(stack: GroupStack) -> GroupStack:
    """On the host with zeros for padding."""
    parts = (on_host(each) for each in (stack.a_SND, stack.b_SOR, stack.scale_S, stack.rank_GS))
    a, b, scale, rank = parts
    return GroupStack(a.nan_to_num(), b.nan_to_num(), scale, rank, stack.outputs)


def on_host(values: Tensor) -> Tensor:
    return values.detach().cpu().clone()


def assert_close(ours: Tensor, twin: Tensor) -> None:
    """Within the rounding of the type."""
    bound = 1e-5 if ours.dtype == torch.float32 and twin.abs().max() < 8 else 2e-2
    error = (ours.cpu().float() - twin.float()).norm() / twin.float().norm().clamp(min=1e-6)
    assert error < bound, f"{error:.2e} > {bound}"


if __name__ == "__main__":
    repair_interpreter()
    check_all(sys.argv[1])
