"""Attention of one layer on CUDA: one flash call for the whole batch against one SDPA call a sequence.

    python -m bench.attention

Shapes of Qwen3-4B in bf16. Training: forward and backward of packed batches. Prefill: forward of a step's prompt
slices over the paged cache. Milliseconds by CUDA events, medians; the limit is arithmetic at 798 TFLOP/s, the
backward pass counted as 2.5 forward passes. A table, then one line of JSON.
"""

import json
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from openrl.model.attention import PackedAttention
from openrl.model.batch import Segment
from openrl.model.flash_attention import FlashAttention
from openrl.sampling.grouped_attention import GroupedAttention
from openrl.sampling.kv_cache import KVCache
from openrl.sampling.paged_attention import PagedAttention
from openrl.sampling.spans import Span

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
SCALE = HEAD_DIM**-0.5
PEAK_FLOPS = 798e12
BLOCK_TOKENS = 16
REPEATS = 7


def sequences(lengths: list[int]) -> tuple[Segment, ...]:
    """Sequences one after the other."""
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    return tuple(Segment(start, length) for start, length in zip(starts, lengths, strict=True))


def families(num: int, prefix: int, children: int, length: int) -> tuple[Segment, ...]:
    """Groups of sequences with a common prefix."""
    segments: list[Segment] = []
    for _ in range(num):
        parent, start = len(segments), num_rows(segments)
        segments.append(Segment(start, prefix))
        segments += [Segment(start + prefix + length * child, length, parent=parent) for child in range(children)]
    return tuple(segments)


def num_rows(segments: list[Segment] | tuple[Segment, ...]) -> int:
    return sum(segment.length for segment in segments)


def mixed_lengths() -> list[int]:
    """20 lengths from 192 to 640 that sum to 8192."""
    lengths = [192 + 448 * index // 19 for index in range(20)]
    lengths[-1] += 8192 - sum(lengths)
    return lengths


TRAINING: dict[str, tuple[Segment, ...]] = {
    "20 sequences, 8192 rows": sequences(mixed_lengths()),
    "1 sequence, 16384 rows": sequences([16384]),
    "1 sequence, 32768 rows": sequences([32768]),
    "5 prefixes of 1024 x 8 of 256": families(5, 1024, 8, 256),
}
PREFILL: dict[str, list[tuple[int, int]]] = {  # (start, length)
    "16 prompts of 512": [(0, 512)] * 16,
    "16 slices of 512 after 2048": [(2048, 512)] * 16,
    "8 prompts of 512 beside 56 single rows": [(0, 512)] * 8 + [(1024, 1)] * 56,
}


def pairs(first: int, length: int) -> float:
    """Rows and the keys that they see."""
    return length * first + length * (length + 1) / 2


def limit_ms(num_pairs: float, passes: float) -> float:
    return 1e3 * passes * 4 * HEADS * HEAD_DIM * num_pairs / PEAK_FLOPS


def median_ms(work: Callable[[], object]) -> float:
    """Between CUDA events; the first calls do not count."""
    times: list[float] = []
    for repeat in range(REPEATS + 2):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        stop.record()
        stop.synchronize()
        if repeat >= 2:
            times.append(start.elapsed_time(stop))
    return statistics.median(times)


def qkv(rows: int) -> list[Tensor]:
    return [
        torch.randn(rows, heads, HEAD_DIM, device="cuda", dtype=torch.bfloat16) for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]


def training(segments: tuple[Segment, ...]) -> dict[str, float]:
    """One layer, forward and backward; what is made once a batch is not timed."""
    rows = num_rows(segments)
    leaves = [x.requires_grad_() for x in qkv(rows)]
    q, k, v = leaves
    grad = torch.randn_like(q)
    flash = FlashAttention(segments, rows, q.device)
    exact = FlashAttention(segments, rows, q.device, deterministic=True)
    loop = PackedAttention(segments)

    def both(attend: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(attend(), leaves, grad)

    num_pairs = sum(pairs(segments[s.parent].length if s.parent >= 0 else 0, s.length) for s in segments)
    return {
        "flash_ms": median_ms(both(lambda: flash.attend(q, k, v, SCALE, None))),
        "forward_ms": median_ms(lambda: flash.attend(q, k, v, SCALE, None)),
        "deterministic_ms": median_ms(both(lambda: exact.attend(q, k, v, SCALE, None))),
        "loop_ms": median_ms(both(lambda: loop.attend_each(q, k, v, SCALE, None))),
        "limit_ms": limit_ms(num_pairs, 3.5),
    }


def prefill(slices: list[tuple[int, int]]) -> dict[str, float]:
    """One layer of a step; its tables are not timed."""
    pages = [-(-(start + length) // BLOCK_TOKENS) for start, length in slices]
    device = torch.device("cuda", torch.cuda.current_device())
    cache = KVCache(1, sum(pages), BLOCK_TOKENS, KV_HEADS, HEAD_DIM, torch.bfloat16, device)
    spans: list[Span] = []
    for (start, length), count in zip(slices, pages, strict=True):
        first = sum(len(span.blocks) for span in spans)
        spans.append(Span(sum(s.length for s in spans), start, length, tuple(range(first, first + count))))
    q, k, v = qkv(sum(span.length for span in spans))
    flash, loop = PagedAttention(cache, spans, HEADS), GroupedAttention(cache, spans, HEADS)
    out = torch.zeros_like(q)
    with torch.no_grad():
        return {
            "flash_ms": median_ms(lambda: flash.attend(0, q, k, v, SCALE, None)),
            "loop_ms": median_ms(lambda: loop.attend_into(out, 0, q, SCALE, None)),
            "limit_ms": limit_ms(sum(pairs(start, length) for start, length in slices), 1),
        }


def main() -> None:
    torch.manual_seed(0)
    results = {name: training(segments) for name, segments in TRAINING.items()}
    results |= {name: prefill(slices) for name, slices in PREFILL.items()}
    for name, result in results.items():
        print(f"{name:40}", *(f"{key[:-3]} {value:8.3f}" for key, value in result.items()), sep="  ")
    rounded = {name: {key: round(value, 4) for key, value in result.items()} for name, result in results.items()}
    print(json.dumps({"bench": "attention", "torch": torch.__version__, "results": rounded}))


if __name__ == "__main__":
    main()
