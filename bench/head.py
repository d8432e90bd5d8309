"""The training head on CUDA: milliseconds and the share of the matrix products' limit. Needs CUDA.

    python -m bench.head --json [--rows 8192] [--repeats 5]

Heads of Qwen3-4B and Gemma-3-1B: the forward pass with p W kept for every row. The limit is 4 V D FLOP a row. Twin: the
same in torch alone, as on CPU, with the whole vocabulary as one block.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from openrl.model import head

PEAK = 798e12
"""FLOP/s of a large bf16 product, measured."""

SHAPES = {"qwen3-4b": (2560, 151936), "gemma-3-1b": (1152, 262144)}
CHECKED_ROWS = 64


def make_model(num_inputs: int, vocab: int) -> Any:
    """What the head needs of a base model."""
    device, dtype = torch.device("cuda"), torch.bfloat16
    weight_VD = torch.randn(vocab, num_inputs, device=device, dtype=dtype).mul_(num_inputs**-0.5)
    whole = slice(0, vocab)
    return SimpleNamespace(
        device=device,
        dtype=dtype,
        vocab_size=vocab,
        head_weight=weight_VD,
        head_rows=weight_VD.__getitem__,
        head_blocks=lambda: iter([whole]),
    )


def run_twin(plan: head.HeadPlan, hidden_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities and p W, by torch alone."""
    logprobs: list[Tensor] = []
    expected: list[Tensor] = []
    for rows in plan.chunks():
        chosen_C = torch.arange(rows.stop - rows.start, device=hidden_MD.device)
        values, mean = head.HeadChunk(plan, hidden_MD[rows], rows).run_by_blocks(chosen_C)
        assert mean is not None
        logprobs.append(values)
        expected.append(mean)
    return torch.cat(logprobs), torch.cat(expected)


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    call()
    times: list[float] = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def errors(model: Any, hidden_MD: Tensor, targets_MK: Tensor, got: tuple[Tensor, Tensor | None]) -> dict[str, float]:
    """Largest error of a log-probability, and the relative one of p W, against float64, over the first rows."""
    exact_CD, weight_VD = hidden_MD[:CHECKED_ROWS].double(), model.head_weight.double()
    exact_CV = torch.log_softmax(exact_CD @ weight_VD.t(), -1)
    logprobs, expected = got
    assert expected is not None
    mean_CD = exact_CV.exp() @ weight_VD
    wrong = logprobs[:CHECKED_ROWS].double() - exact_CV.gather(1, targets_MK[:CHECKED_ROWS])
    wrong_mean = (expected[:CHECKED_ROWS].double() - mean_CD).norm() / mean_CD.norm()
    return {"logprob": float(wrong.abs().max()), "expectation": float(wrong_mean)}


def measure(name: str, num_rows: int, repeats: int) -> dict[str, Any]:
    num_inputs, vocab = SHAPES[name]
    torch.manual_seed(0)
    model = make_model(num_inputs, vocab)
    hidden_MD = 6 * torch.randn(num_rows, num_inputs, device=model.device, dtype=model.dtype)
    targets_MK = torch.randint(0, vocab, (num_rows, 1), device=model.device)
    plan = head.HeadPlan(model, targets_MK, None, (), None)
    limit = 1e3 * 4 * vocab * num_inputs * num_rows / PEAK
    ways: dict[str, Callable[[], tuple[Tensor, Tensor | None]]] = {
        "fused": lambda: plan.forward(hidden_MD, keep_expectation=True),
        "twin": lambda: run_twin(plan, hidden_MD),
    }
    result: dict[str, Any] = {"model": name, "rows": num_rows, "limit_ms": limit}
    with torch.no_grad():
        for way, call in ways.items():
            taken = milliseconds(call, repeats)
            found = errors(model, hidden_MD, targets_MK, call())
            result[way] = {"ms": taken, "share": limit / taken, "errors": found}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    for name in SHAPES:
        results.append(measure(name, options.rows, options.repeats))
        print(results[-1])
    if options.json:
        print(json.dumps({"device": torch.cuda.get_device_name(), "results": results}))


if __name__ == "__main__":
    main()
