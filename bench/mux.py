"""GRPO jobs through the SDK on one device: how full it is, and what more jobs bring.

    python -m bench.mux --json [--model tiny|qwen3-0.6b|qwen3-4b] [--seconds 120] [--jobs 1 2 3 6] [--small]

The models have random weights. Each job samples groups, waits 1 to 3 s for the reward of each, sends forward_backward
and optim_step, takes a new snapshot, and begins again. `busy` is the worker's own device time over wall time.
`--small` makes the jobs small enough for a CPU. `bench.sim` is the same on a virtual clock.
"""

import argparse
import asyncio
import json
import random
import re
import signal
import statistics
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tinker
import torch
from tinker import types

from bench.custom_loss import start
from bench.random_models import NAMES, save_random_model

REWARD_S = (1.0, 3.0)
_BUSY = re.compile(r'^\w*worker_busy_seconds\{[^}]*side="(train|sample)"[^}]*\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Shape:
    """What one step of a job is."""

    num_groups: int = 16
    group_size: int = 8
    prompt_tokens: int = 256
    median_tokens: int = 96
    max_tokens: int = 256


SMALL = Shape(num_groups=2, group_size=4, prompt_tokens=24, median_tokens=12, max_tokens=32)


@dataclass(slots=True)
class Job:
    """One training run and its loop."""

    service: tinker.ServiceClient
    shape: Shape
    number: int
    step_ends: list[float] = field(default_factory=list[float])

    async def run(self, end: float) -> None:
        """Steps until then; the last one is finished."""
        draw = random.Random(self.number)
        trainer = await self.service.create_lora_training_client("bench", rank=32, seed=self.number)
        sampler = await trainer.save_weights_and_get_sampling_client()
        while time.perf_counter() < end:
            groups = await asyncio.gather(*(self._group(sampler, draw) for _ in range(self.shape.num_groups)))
            data = [datum for group in groups for datum in group]
            passed = trainer.forward_backward(data, "importance_sampling")
            stepped = trainer.optim_step(types.AdamParams(learning_rate=1e-6))
            await passed
            await stepped
            sampler = await trainer.save_weights_and_get_sampling_client()
            self.step_ends.append(time.perf_counter())

    async def _group(self, sampler: tinker.SamplingClient, draw: random.Random) -> list[types.Datum]:
        """Samples of one prompt, scored; random weights never stop by themselves, so the length is drawn."""
        shape = self.shape
        prompt = [draw.randrange(2, 500) for _ in range(shape.prompt_tokens)]
        length = min(shape.max_tokens, max(1, round(shape.median_tokens * draw.lognormvariate(0.0, 0.6))))
        params = types.SamplingParams(max_tokens=length, stop=[])
        reply = await sampler.sample(types.ModelInput.from_ints(prompt), shape.group_size, params)
        await asyncio.sleep(draw.uniform(*REWARD_S))
        return [datum_of(prompt, each, draw.gauss(0.0, 1.0)) for each in reply.sequences]


def datum_of(prompt: list[int], sampled: types.SampledSequence, advantage: float) -> types.Datum:
    """The policy-gradient datum of one sample."""
    tokens = [*prompt, *sampled.tokens]
    num_context = len(prompt) - 1
    logprobs = np.array([0.0] * num_context + list(sampled.logprobs or []), np.float32)
    advantages = np.array([0.0] * num_context + [advantage] * len(sampled.tokens), np.float32)
    inputs: dict[str, Any] = {
        "target_tokens": types.TensorData.from_numpy(np.array(tokens[1:], np.int64)),
        "logprobs": types.TensorData.from_numpy(logprobs),
        "advantages": types.TensorData.from_numpy(advantages),
    }
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)


def busy_s(url: str) -> float:
    """Device seconds of the worker since it started."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
        return sum(float(seconds) for _, seconds in _BUSY.findall(reply.read().decode()))


async def measure(url: str, key: str, shape: Shape, num_jobs: int, warm_up_s: float, seconds: float) -> dict[str, Any]:
    """So many jobs at once; the window between warm-up and end counts."""
    begin = time.perf_counter() + warm_up_s
    jobs = [Job(tinker.ServiceClient(base_url=url, api_key=key), shape, number) for number in range(num_jobs)]
    running = asyncio.gather(*(job.run(begin + seconds) for job in jobs))
    await asyncio.sleep(warm_up_s)
    before_s = await asyncio.to_thread(busy_s, url)
    await asyncio.sleep(seconds)
    after_s = await asyncio.to_thread(busy_s, url)
    await running
    steps = [sum(begin <= each < begin + seconds for each in job.step_ends) for job in jobs]
    pairs = [(a, b) for job in jobs for a, b in zip(job.step_ends, job.step_ends[1:], strict=False) if a >= begin]
    return {
        "busy": round((after_s - before_s) / seconds, 3),
        "episodes_per_s": round(sum(steps) * shape.num_groups * shape.group_size / seconds, 2),
        "step_s": round(statistics.fmean(b - a for a, b in pairs), 3) if pairs else None,
        "steps": steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print only the result line")
    parser.add_argument("--model", choices=NAMES, default="qwen3-4b")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--warm-up", type=float, default=30.0)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2, 3, 6])
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    shape = SMALL if options.small else Shape()
    found: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="openrl-bench-") as directory:
        root = Path(directory)
        server, ready = start(save_random_model(options.model, root / "model"), root)
        try:
            for n in options.jobs:
                args = ready["url"], ready["key"], shape, n, options.warm_up, options.seconds
                found[n] = asyncio.run(measure(*args))
                if not options.json:
                    print(n, found[n], flush=True)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
    alone = found[min(found)]["episodes_per_s"]
    for each in found.values():
        each["ratio"] = round(each["episodes_per_s"] / alone, 2) if alone else None
    print(json.dumps(report(options.model, shape, found)))


def report(model: str, shape: Shape, found: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The result line; the value is that of three jobs where three ran."""
    chosen = 3 if 3 in found else max(found)
    ratio = found[chosen]["ratio"]
    return {
        "benchmark": "mux",
        "value": ratio,
        "unit": f"episodes/s of {chosen} jobs over those of {min(found)}",
        "required": 2.4 if chosen == 3 else None,
        "limit": chosen / min(found),
        "ratio": round(ratio * min(found) / chosen, 3) if ratio else None,
        "model": model,
        "shape": {name: getattr(shape, name) for name in Shape.__slots__},
        "jobs": found,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "tinker": tinker.__version__,
    }


if __name__ == "__main__":
    main()
