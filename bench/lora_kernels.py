"""Times the LoRA kernels at real shapes against their bytes and against torch._grouped_mm. Needs CUDA.

    python -m bench.lora_kernels [--models qwen3-4b qwen3-0.6b] [--quick]

For every group of linears: forward (shrink, expand) and backward (gradients of rows, of factors) of T = 8192 rows in
training, forward of few rows in decoding. `limit`: the bytes that must move over 3.0 TB/s. `grouped_mm`: the two
products of the same rows by torch._grouped_mm, forward only. Results are checked against the plain products first.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import triton.testing
from torch import Tensor

from bench.models import SHAPES
from openrl.model.batch import Segment
from openrl.model.lora_launch import TritonLora
from openrl.model.lora_tiles import DECODE_TILE_ROWS, TRAINING_TILE_ROWS, GradientTable, GroupStack, RowTiles

BYTES_PER_S = 3.0e12
CUDA = torch.device("cuda")
TRAINING = ((8192, 1), (8192, 8), (8192, 64))
DECODING = ((64, 1), (64, 8), (64, 64), (256, 1), (256, 8), (256, 64))


@dataclass(frozen=True, slots=True)
class Timing:
    """One kernel at one shape, in microseconds."""

    model: str
    group: str
    kernel: str
    rows: int
    slots: int
    microseconds: float
    limit: float
    grouped_mm: float | None = None


def groups_of(model: str) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Inputs and outputs of the groups of one layer."""
    shape: dict[str, Any] = SHAPES[model][1]
    d, inner, head = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
    q, kv = shape["num_attention_heads"] * head, shape["num_key_value_heads"] * head
    return {"qkv": (d, (q, kv, kv)), "o": (q, (d,)), "gate_up": (d, (inner, inner)), "down": (inner, (d,))}


def random_stack(num_inputs: int, outputs: tuple[int, ...], ranks: list[int]) -> GroupStack:
    """Adapters of the given ranks, padded with zeros to the largest."""
    padded = -(-max(ranks) // 16) * 16
    a = torch.randn(len(ranks), len(outputs), padded, num_inputs, device=CUDA, dtype=torch.bfloat16) * num_inputs**-0.5
    b = torch.randn(len(ranks), sum(outputs), padded, device=CUDA, dtype=torch.bfloat16) * 0.1
    for slot, rank in enumerate(ranks):
        a[slot, :, rank:] = 0
        b[slot, :, rank:] = 0
    rank_GS = torch.tensor([ranks] * len(outputs), dtype=torch.int32, device=CUDA)
    return GroupStack(a.flatten(1, 2), b, torch.ones(len(ranks), device=CUDA), rank_GS, outputs)


def segments_of(num_rows: int, num_slots: int) -> list[Segment]:
    """The rows divided evenly between the slots, each a job."""
    length = num_rows // num_slots
    return [Segment(length * slot, length, slot, slot) for slot in range(num_slots)]


def random_rows(num_rows: int, width: int) -> Tensor:
    return torch.randn(num_rows, width, device=CUDA, dtype=torch.bfloat16)


def time_us(run: Callable[[], object], quick: bool) -> float:
    """Median, with cold caches."""
    median: Any = triton.testing.do_bench(run, warmup=2, rep=5 if quick else 15, return_mode="median")
    return 1e3 * float(median)


def time_graph_us(run: Callable[[], object], repeats: int = 20) -> float:
    """Mean over a CUDA graph that runs it many times: what a step of the decode loop pays, with warm caches."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            run()
    graph.replay()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(5):
        graph.replay()
    stop.record()
    torch.cuda.synchronize()
    return 1e3 * start.elapsed_time(stop) / (5 * repeats)


def limit_us(*tensors: Tensor | int) -> float:
    """Time to move the tensors, or so many bytes."""
    num_bytes = sum(each if isinstance(each, int) else each.numel() * each.element_size() for each in tensors)
    return round(1e6 * num_bytes / BYTES_PER_S, 2)


def weight_bytes(stack: GroupStack) -> tuple[int, int]:
    """Of A and of B, without padding."""
    ranks = stack.rank_GS[0].sum().item()
    return int(2 * ranks * len(stack.outputs) * stack.num_inputs), int(2 * ranks * sum(stack.outputs))


def check(name: str, got: Tensor, expected: Tensor) -> None:
    error = float((got.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-6))
    assert error < 2e-2, f"{name}: relative error {error:.2e}"


def plain_product(stack: GroupStack, x_TD: Tensor, segments: list[Segment]) -> Tensor:
    """scale (x A^T) B^T of the rows, slot by slot."""
    parts: list[Tensor] = []
    for each in segments:
        xa = x_TD[each.start : each.start + each.length] @ stack.a_SND[each.slot].t()
        b = stack.b_SOR[each.slot].split(stack.outputs)
        xas = xa.split(stack.rank, 1)
        parts.append(torch.cat([one.float() @ other.float().t() for one, other in zip(xas, b, strict=True)], 1))
    return torch.cat(parts)


def grouped_mm_us(stack: GroupStack, x_TD: Tensor, segments: list[Segment], quick: bool) -> float | None:
    """The same products by torch._grouped_mm, one for each linear."""
    ends = torch.tensor([s.start + s.length for s in segments], dtype=torch.int32, device=CUDA)
    grouped: Any = getattr(torch, "_grouped_mm", None)
    if grouped is None:
        return None
    a_SDN = stack.a_SND.transpose(1, 2)
    b = [part.transpose(1, 2) for part in stack.b_SOR.split(stack.outputs, 1)]

    def run() -> None:
        xa = grouped(x_TD, a_SDN, offs=ends)
        for part, b_SRO in enumerate(b):
            grouped(xa[:, part * stack.rank : (part + 1) * stack.rank].contiguous(), b_SRO, offs=ends)

    return round(time_us(run, quick), 1)


def time_decoding(model: str, group: str, stack: GroupStack, num_rows: int, num_slots: int) -> list[Timing]:
    ops, segments = TritonLora(), segments_of(num_rows, num_slots)
    x, y = random_rows(num_rows, stack.num_inputs), random_rows(num_rows, sum(stack.outputs))
    tiles = RowTiles.of(segments, DECODE_TILE_ROWS, CUDA)
    delta, before = plain_product(stack, x, segments), y.clone()
    xa = ops.shrink(stack, x, tiles)
    ops.expand(stack, xa, y, tiles)
    check("decode", y.float() - before.float(), delta)
    a, b = weight_bytes(stack)

    def both() -> None:
        ops.expand(stack, ops.shrink(stack, x, tiles), y, tiles)

    found = {
        "shrink": (time_graph_us(lambda: ops.shrink(stack, x, tiles)), limit_us(x, a)),
        "expand": (time_graph_us(lambda: ops.expand(stack, xa, y, tiles)), limit_us(y, y, b)),
        "both": (time_graph_us(both), limit_us(x, y, y, a, b)),
    }
    return [Timing(model, group, f"decode {k}", num_rows, num_slots, round(t, 2), low) for k, (t, low) in found.items()]


def time_training(
    model: str, group: str, stack: GroupStack, num_rows: int, num_slots: int, quick: bool
) -> list[Timing]:
    ops, segments = TritonLora(), segments_of(num_rows, num_slots)
    x, y = random_rows(num_rows, stack.num_inputs), random_rows(num_rows, sum(stack.outputs))
    grads = tuple(random_rows(num_rows, size) for size in stack.outputs)
    dx = torch.zeros_like(x)
    tiles = RowTiles.of(segments, TRAINING_TILE_ROWS, CUDA)
    table, flats = gradient_table(stack, segments)
    delta, before = plain_product(stack, x, segments), y.clone()
    xa, gb = ops.shrink(stack, x, tiles), ops.shrink_grads(stack, grads, tiles)
    ops.expand(stack, xa, y, tiles)
    check("forward", y.float() - before.float(), delta)
    ops.expand_grads(stack, gb, dx, tiles)
    ops.add_grads(stack, x, grads, xa, gb, table, 0)
    check_gradients(stack, segments, x, grads, flats, gb, dx)
    a, b = weight_bytes(stack)
    staged = sum(each.numel() * 8 for each in flats)  # read and written
    found = {
        "shrink": (lambda: ops.shrink(stack, x, tiles), limit_us(x, xa, a)),
        "expand": (lambda: ops.expand(stack, xa, y, tiles), limit_us(y, y, xa, b)),
        "shrink_grads": (lambda: ops.shrink_grads(stack, grads, tiles), limit_us(*grads, gb, b)),
        "expand_grads": (lambda: ops.expand_grads(stack, gb, dx, tiles), limit_us(dx, dx, gb, a)),
        "add_grads": (lambda: ops.add_grads(stack, x, grads, xa, gb, table, 0), limit_us(x, *grads, xa, gb, staged)),
    }
    rows: list[Timing] = []
    for kernel, (run, low) in found.items():
        other = grouped_mm_us(stack, x, segments, quick) if kernel == "shrink" else None
        rows.append(Timing(model, group, kernel, num_rows, num_slots, round(time_us(run, quick), 2), low, other))
    return rows


def gradient_table(stack: GroupStack, segments: list[Segment]) -> tuple[GradientTable, list[Tensor]]:
    """Zeroed buffers of every job: dA of all linears, then dB of all."""
    flats: list[Tensor] = []
    address = torch.zeros(len(stack.outputs), len(segments), 2, dtype=torch.int64)
    for job, rank in enumerate(stack.rank_GS[0].tolist()):
        num_a = rank * stack.num_inputs
        flats.append(torch.zeros(num_a * len(stack.outputs) + rank * sum(stack.outputs), device=CUDA))
        at_b = flats[-1].data_ptr() + 4 * num_a * len(stack.outputs)
        for part, size in enumerate(stack.outputs):
            address[part, job] = torch.tensor([flats[-1].data_ptr() + 4 * part * num_a, at_b])
            at_b += 4 * rank * size
    return GradientTable.of(segments, address, CUDA), flats


def check_gradients(
    stack: GroupStack,
    segments: list[Segment],
    x: Tensor,
    grads: tuple[Tensor, ...],
    flats: list[Tensor],
    gb: Tensor,
    dx: Tensor,
) -> None:
    """Of the first and the last job, whose number is that of the segment and of the slot."""
    for job in {0, len(segments) - 1}:
        rows = slice(segments[job].start, segments[job].start + segments[job].length)
        a, rank, r = stack.a_SND[job].float(), int(stack.rank_GS[0, job]), stack.rank
        da, db = flats[job].split([rank * stack.num_inputs * len(stack.outputs), rank * sum(stack.outputs)])
        check("dx", dx[rows], gb[0, rows].float() @ a)
        expected_a: list[Tensor] = []
        expected_b: list[Tensor] = []
        b = stack.b_SOR[job].float().split(stack.outputs)
        for part, g in enumerate(grads):
            expected_a.append(((g[rows].float() @ b[part]).t() @ x[rows].float())[:rank].flatten())
            xa = x[rows].float() @ a[part * r : part * r + rank].t()
            expected_b.append((g[rows].float().t() @ xa).flatten())
        check("dA", da, torch.cat(expected_a))
        check("dB", db, torch.cat(expected_b))


def ranks_of(num_slots: int) -> list[int]:
    """32, but of many slots several ranks."""
    return [(8, 16, 32, 64)[slot % 4] for slot in range(num_slots)] if num_slots == 64 else [32] * num_slots


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=["qwen3-4b", "qwen3-0.6b"])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    timings: list[Timing] = []
    for model in options.models:
        for group, (num_inputs, outputs) in groups_of(model).items():
            for num_rows, num_slots in TRAINING:
                stack = random_stack(num_inputs, outputs, ranks_of(num_slots))
                timings += time_training(model, group, stack, num_rows, num_slots, options.quick)
            for num_rows, num_slots in DECODING:
                stack = random_stack(num_inputs, outputs, [32] * num_slots)
                timings += time_decoding(model, group, stack, num_rows, num_slots)
    print(
        f"{'model':<11}{'group':<8}{'kernel':<14}{'rows':>5}{'slots':>6}{'us':>9}{'limit':>8}{'ratio':>7}{'grouped_mm':>11}"
    )
    for each in timings:
        ratio, other = each.limit / each.microseconds, "" if each.grouped_mm is None else each.grouped_mm
        print(
            f"{each.model:<11}{each.group:<8}{each.kernel:<14}{each.rows:>5}{each.slots:>6}{each.microseconds:>9}"
            f"{each.limit:>8}{ratio:>7.2f}{other:>11}"
        )
    print(json.dumps({"device": torch.cuda.get_device_name(), "timings": [asdict(each) for each in timings]}))


if __name__ == "__main__":
    main()
