"""One optimizer step through the training engine: milliseconds.

    python -m bench.optim --json [--model qwen3-4b] [--tiny] [--record]

adamw     one run of rank 32; with clipping, as clients ask for it
runs8     eight such runs in one call, as the worker passes those of one tick
The twin is torch.optim.AdamW (fused on CUDA) over one fp32 tensor for every factor of the same adapter.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.limits import limits_of
from bench.models import RANK, create_model, random_adapter
from bench.records import Part, finish, options_of, time_part, timed
from bench.train import deal, one_pass, open_engine, random_datums
from openrl.errors import RequestFailed
from openrl.model.base_model import BaseModel
from openrl.training.base import AdamParams, OptimStep

WORKLOADS = ("adamw", "runs8")
NUM_RUNS = {"adamw": 1, "runs8": 8}
REQUIRED_MS = 5.0


def steps(model: BaseModel, num_runs: int, repeats: int) -> list[float]:
    """Seconds of engine steps, each after a short pass that leaves a gradient; the first does not count."""
    engine = open_engine(model, [RANK] * num_runs, num_runs)
    backward = one_pass(engine, deal(random_datums(model.vocab_size, num_runs, (16, 16)), num_runs))
    seconds: list[float] = []
    params = AdamParams(learning_rate=1e-5, grad_clip_norm=1.0)

    def step() -> None:
        for metrics in engine.optim_step([OptimStep(f"run{index}", params) for index in range(num_runs)]):
            if isinstance(metrics, RequestFailed):
                raise metrics
            assert metrics["grad_norm"] > 0

    for _ in range(repeats + 1):
        backward()
        seconds.append(timed(step))
    return seconds[1:]


def twin_step(model: BaseModel) -> Callable[[], None]:
    """torch's own optimizer over the same number of parameters."""
    adapter = random_adapter(model, 0)
    factors = [part.to(model.device) for pair in adapter.pairs.values() for part in (pair.a_RD, pair.b_OR)]
    for factor in factors:
        factor.grad = torch.ones_like(factor)
    optimizer = torch.optim.AdamW(factors, lr=1e-5, fused=model.device.type == "cuda")

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(factors, 1.0)
        optimizer.step()

    return step


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = options_of(__doc__, WORKLOADS, argv)
    model = create_model(options.model, options.tiny)
    repeats = max(options.repeats, 3 if options.tiny else 10)
    limits = limits_of(model, RANK)
    parts: list[Part] = []
    for workload in options.workloads:
        num_runs = NUM_RUNS[workload]
        seconds = sorted(steps(model, num_runs, repeats))
        details = {"slowest_ms": round(1e3 * seconds[-1], 3), "parameters": num_runs * limits.lora}
        limit_s, required_ms = num_runs * limits.optim_s(), num_runs * REQUIRED_MS
        parts.append(time_part(workload, seconds[len(seconds) // 2], limit_s, required_ms, **details))
    step = twin_step(model)
    twin_s = sorted(timed(step) for _ in range(repeats + 1))[repeats // 2]
    twin = {"what": "torch.optim.AdamW", "value": round(1e3 * twin_s, 3), "unit": "ms"}
    return finish("optim", parts, twin, options)


if __name__ == "__main__":
    main()
