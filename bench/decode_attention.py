"""Decode attention over the paged cache: microseconds a layer and the share of the memory's bandwidth. Needs CUDA.

    python -m bench.decode_attention --json [--tune] [--repeats 5]

For the heads of Qwen3-4B, Qwen3-0.6B and Gemma-3-1B, 64 and 256 rows, every sequence of 512 tokens or of 100 to 2048.
Layers take turns, so that the caches of the layers before have left the L2 cache. Twins: the gathered pages through
torch's scaled_dot_product_attention, as PagedAttention does it, and that over dense keys and values of one length.
Each result is checked against the gathered one. `--tune` also times other cuts of the work. Everything runs as a CUDA
graph of all layers, as in a decode step.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from openrl.sampling.decode_attention import DecodeAttention, DecodeTiles, tiles_of
from openrl.sampling.kv_cache import KVCache
from openrl.sampling.paged_attention import PagedAttention, Span

BANDWIDTH = 3.0e12
PAGE = 16
CACHE_BYTES = 6 * 2**30
"""Of all layers of a case; L2 has 50 MB."""
MAX_LAYERS = 36
TOLERANCE = 3e-2


class Heads(NamedTuple):
    """Of one model's attention."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None = None


MODELS = {
    "qwen3-4b": Heads(32, 8, 128),
    "qwen3-0.6b": Heads(16, 8, 128),
    "gemma-3-1b": Heads(4, 1, 256),
    "gemma-3-1b window": Heads(4, 1, 256, 512),
}
CUTS = [(512, 64, 4, 7), (512, 64, 4, 5), (512, 32, 4, 9), (256, 64, 4, 7), (1024, 64, 4, 7), (512, 64, 8, 7)]
GEMMA_CUTS = [(128, 32, 4, 7), (128, 32, 8, 7), (128, 32, 4, 5), (256, 32, 4, 7), (64, 32, 4, 5)]


class Case(NamedTuple):
    """Random keys and values of all layers, and one new row for each sequence."""

    heads: Heads
    cache: KVCache
    tables_BP: Tensor
    lengths: list[int]
    num_layers: int
    q_BNH: Tensor
    k_BKH: Tensor
    v_BKH: Tensor

    @property
    def layer_bytes(self) -> int:
        """Read by one layer."""
        seen = sum(min(length, self.heads.window or length) for length in self.lengths)
        return 2 * seen * self.heads.num_kv_heads * self.heads.head_dim * self.q_BNH.element_size()


def make_case(heads: Heads, lengths: list[int]) -> Case:
    device, dtype = torch.device("cuda"), torch.bfloat16
    num_pages = -(-max(lengths) // PAGE)
    used = sum(-(-length // PAGE) for length in lengths)
    layer_bytes = 2 * used * PAGE * heads.num_kv_heads * heads.head_dim * dtype.itemsize
    num_layers = max(2, min(MAX_LAYERS, CACHE_BYTES // layer_bytes))
    cache = KVCache(num_layers, used, PAGE, heads.num_kv_heads, heads.head_dim, dtype, device)
    for layer in range(num_layers):
        for store in cache.layer(layer):
            store.normal_()
    order = iter(torch.randperm(used).tolist())
    tables = [[next(order) if page * PAGE < length else 0 for page in range(num_pages)] for length in lengths]
    q_BNH = torch.randn(len(lengths), heads.num_heads, heads.head_dim, device=device, dtype=dtype)
    k_BKH, v_BKH = torch.randn(2, len(lengths), heads.num_kv_heads, heads.head_dim, device=device, dtype=dtype)
    tables_BP = torch.tensor(tables, dtype=torch.int32, device=device)
    return Case(heads, cache, tables_BP, lengths, num_layers, q_BNH, k_BKH, v_BKH)


def layer_seconds(run: Callable[[int], object], num_layers: int, repeats: int) -> float:
    """Median seconds of a layer; all layers as one CUDA graph."""
    run(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for layer in range(num_layers):
            run(layer)
    seconds: list[float] = []
    for _ in range(repeats + 1):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        seconds.append(start.elapsed_time(stop) / 1e3 / num_layers)
    return statistics.median(seconds[1:])


def own(case: Case, tiles: DecodeTiles | None = None) -> Callable[[int], Tensor]:
    """Our kernels."""
    lengths_B = torch.tensor(case.lengths, dtype=torch.int32, device="cuda")
    num_splits = DecodeAttention.splits_for(case.cache, max(case.lengths), tiles)
    attention = DecodeAttention(case.cache, case.tables_BP, lengths_B, num_splits, tiles=tiles)
    scale = case.heads.head_dim**-0.5
    return lambda layer: attention.attend(layer, case.q_BNH, case.k_BKH, case.v_BKH, scale, case.heads.window)


def gathered(case: Case) -> Callable[[int], Tensor]:
    """The pages gathered for torch's attention."""
    tables = case.tables_BP.tolist()
    spans = [
        Span(row, length - 1, 1, tuple(table[: -(-length // PAGE)]))
        for row, (length, table) in enumerate(zip(case.lengths, tables, strict=True))
    ]
    attention = PagedAttention(case.cache, spans, case.heads.num_heads)
    scale = case.heads.head_dim**-0.5
    return lambda layer: attention.attend(layer, case.q_BNH, case.k_BKH, case.v_BKH, scale, case.heads.window)


def dense(case: Case) -> Callable[[int], Tensor]:
    """torch's attention over dense keys and values, all of the longest row's length; layers take turns over a few."""
    num_rows, longest = len(case.lengths), min(max(case.lengths), case.heads.window or max(case.lengths))
    size = (num_rows, case.heads.num_kv_heads, longest, case.heads.head_dim)
    turns = [torch.randn(2, *size, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    q_BN1H = case.q_BNH[:, :, None]

    def run(layer: int) -> Tensor:
        k, v = turns[layer % 2]
        return torch.nn.functional.scaled_dot_product_attention(q_BN1H, k, v, enable_gqa=True)

    return run


def measure(name: str, context: str, lengths: list[int], options: argparse.Namespace) -> dict[str, Any]:
    """One shape."""
    case = make_case(MODELS[name], lengths)
    run = own(case)
    expected = gathered(case)(0)
    error = float((run(0).float() - expected.float()).abs().max())
    assert error <= TOLERANCE, f"{name} {context}: off by {error}"
    seconds = layer_seconds(run, case.num_layers, options.repeats)
    twins = {"gathered_us": gathered(case), "dense_us": dense(case)}
    result: dict[str, Any] = {
        "model": name,
        "rows": len(lengths),
        "context": context,
        "layer_us": round(1e6 * seconds, 1),
        "gb_s": round(case.layer_bytes / seconds / 1e9),
        "share": round(case.layer_bytes / seconds / BANDWIDTH, 3),
        "max_error": error,
        "tiles": asdict(tiles_of(case.cache)),
        **{key: round(1e6 * layer_seconds(twin, min(4, case.num_layers), 3), 1) for key, twin in twins.items()},
    }
    if options.tune:
        cuts = GEMMA_CUTS if case.heads.head_dim == 256 else CUTS
        result["cuts"] = [
            [*cut, round(1e6 * layer_seconds(own(case, DecodeTiles(*cut)), case.num_layers, options.repeats), 1)]
            for cut in cuts
        ]
    return result


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tune", action="store_true", help="also other cuts: [split, tile, warps, stages, us]")
    parser.add_argument("--json", action="store_true", help="print only the result line")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    parts: list[dict[str, Any]] = []
    for name in options.model:
        for rows in (64, 256):
            ragged = torch.randint(100, 2049, (rows,)).tolist()
            for context, lengths in (("512", [512] * rows), ("100-2048", ragged)):
                parts.append(measure(name, context, lengths, options))
                torch.cuda.empty_cache()
                if not options.json:
                    print(json.dumps(parts[-1]), flush=True)
    first = parts[0]
    result = {"benchmark": "decode_attention", "value": first["share"], "unit": "of 3.0 TB/s", "parts": parts}
    result["device"] = torch.cuda.get_device_name()
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
