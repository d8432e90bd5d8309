"""Decoding through the sampling engine: generated tokens a second.

    python -m bench.sample --json [--model qwen3-4b] [--workloads adapters64 base64 uniform] [--tiny] [--record]
    python -m bench.sample --json --only qwen3-4b:adapters256 qwen3-0.6b:base64 gemma-3-1b:base64 [--profile]

base64, base256          64 or 256 sequences of 256 prompt tokens and 512 new ones, on the base model
adapters64, adapters256  the same over 8 snapshots of rank 32
snapshots                64 sequences, each on a snapshot of its own, beside the base alone
shared                   16 groups of 16 samples of one prompt of 1,024 tokens, beside 256 prompts of their own
uniform                  256 sequences on the base, prompts and lengths uniform in 100-1024 (seed 0; 133,966 new tokens)
Decode rates are of the steps after the first token: the time of a run less that of one that ends after one token.
A run before them, which does not count, captures the graphs. The twin is one sequence at a time.
--only names rows of several models for one result; --profile prints the kernels of some steps before it.
"""

import gc
import random
import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity

from bench.limits import Limits, limits_of
from bench.models import RANK, SHAPES, create_model, random_adapter
from bench.records import Part, finish, options_of, rate_part, timed
from openrl.config import SamplingConfig
from openrl.errors import RequestFailed
from openrl.model.adapter import AdapterWeights
from openrl.model.base_model import BaseModel
from openrl.protocol.results import SampleResult
from openrl.protocol.runs import SamplerSpec
from openrl.sampling.base import SampleJob, SamplingEngine, SamplingOptions
from openrl.sampling.engine import PagedSamplingEngine, create_sampling_engine
from openrl.sampling.kv_cache import bytes_per_block

WORKLOADS = ("adapters64", "adapters256", "base64", "base256", "snapshots", "shared", "uniform")
BLOCK_TOKENS = 16
PROFILED_CALLS = 4
REQUIRED: Mapping[tuple[str, str], float] = {
    ("qwen3-4b", "adapters64"): 9_600.0,
    ("qwen3-4b", "adapters256"): 18_000.0,
    ("qwen3-4b", "base64"): 10_500.0,
    ("qwen3-4b", "base256"): 20_000.0,
    ("qwen3-4b", "uniform"): 10_000.0,
    ("qwen3-0.6b", "base64"): 14_000.0,
    ("qwen3-0.6b", "base256"): 28_000.0,
    ("qwen3-0.6b", "uniform"): 18_700.0,
}


@dataclass(frozen=True, slots=True)
class Work:
    """Sizes of the workloads."""

    prompt: int
    new: int
    batches: tuple[int, int]
    num_snapshots: int
    groups: int
    group_prompt: int
    group_new: int
    uniform: tuple[int, int, int]  # sequences, shortest, longest


def make_work(tiny: bool) -> Work:
    """Sizes for a GPU, or for a test."""
    if tiny:
        return Work(12, 6, (4, 8), 4, 2, 48, 6, (6, 4, 12))
    return Work(256, 512, (64, 256), 64, 16, 1024, 128, (256, 100, 1024))


class Sampling:
    """Rounds of requests through one engine; no prompt is met twice."""

    def __init__(
        self, model: BaseModel, num_sequences: int, tokens_each: int, num_adapters: int, num_tokens: int = 0
    ) -> None:
        self._vocab_size = model.vocab_size
        self._engine = make_engine(model, num_sequences, tokens_each, num_adapters, num_tokens)
        self._rounds = 0

    def seconds(
        self, lengths: Sequence[int], new: Sequence[int], num_adapters: int = 0, num_samples: int = 1
    ) -> tuple[float, int]:
        """Time of one round and the prompt tokens computed; request i is on snapshot i modulo their number."""
        jobs = self._jobs(lengths, new, num_adapters, num_samples)
        results: dict[str, SampleResult | RequestFailed] = {}
        counts: list[int] = []
        taken = timed(lambda: results.update(run_to_end(self._engine, jobs, counts)))
        num_new = sum(len(s.tokens) for r in results.values() if isinstance(r, SampleResult) for s in r.sequences)
        assert num_new == num_samples * sum(new), f"{num_new} tokens in place of {num_samples * sum(new)}"
        return taken, sum(counts) - num_new

    def begin(self, num_requests: int, prompt: int, new: int, num_adapters: int) -> PagedSamplingEngine:
        """The engine with a round of requests that nobody has stepped yet."""
        for job in self._jobs([prompt] * num_requests, [new] * num_requests, num_adapters, 1):
            self._engine.add(job)
        return self._engine

    def _jobs(self, lengths: Sequence[int], new: Sequence[int], num_adapters: int, num_samples: int) -> list[SampleJob]:
        self._rounds += 1
        prompts = prompts_of(self._vocab_size, lengths, self._rounds)
        jobs: list[SampleJob] = []
        for index, (prompt, length) in enumerate(zip(prompts, new, strict=True)):
            key = str(index % num_adapters) if num_adapters else None
            chosen = SamplingOptions(max_tokens=length, seed=index, stops_at_eos=False)
            sampler = SamplerSpec(f"s{key}", "bench", key)
            jobs.append(SampleJob(f"{self._rounds}-{index}", sampler, prompt, num_samples, chosen))
        return jobs

    def decode_rate(
        self, num_requests: int, prompt: int, new: int, num_adapters: int = 0, num_samples: int = 1
    ) -> tuple[float, dict[str, Any]]:
        """Tokens/s after the first token, and what else the round showed."""
        lengths = [prompt] * num_requests
        self.seconds(lengths, [new] * num_requests, num_adapters, num_samples)  # warms up, loads the adapters
        first_s, _ = self.seconds(lengths, [1] * num_requests, num_adapters, num_samples)
        whole_s, computed = self.seconds(lengths, [new] * num_requests, num_adapters, num_samples)
        num_sequences = num_requests * num_samples
        decode_s = max(whole_s - first_s, 1e-9)
        details = {
            "step_ms": round(1e3 * decode_s / (new - 1), 3),
            "end_to_end": round(num_sequences * new / whole_s, 1),
            "first_token_s": round(first_s, 3),
            "prompt_tokens_computed": computed,
        }
        return num_sequences * (new - 1) / decode_s, details


def make_engine(
    model: BaseModel, num_sequences: int, tokens_each: int, num_adapters: int, num_tokens: int = 0
) -> PagedSamplingEngine:
    """An engine with room for so many sequences; snapshot "n" is random_adapter(model, n).

    `num_tokens`: of all sequences together, where that is less than as many as the longest each.
    """
    block = bytes_per_block(model.num_layers, BLOCK_TOKENS, model.num_kv_heads, model.head_dim, model.dtype)
    num_blocks = (num_tokens or num_sequences * tokens_each) // BLOCK_TOKENS + 2 * num_sequences
    config = SamplingConfig(
        max_sequences=num_sequences,
        cache_bytes=num_blocks * block,
        block_tokens=BLOCK_TOKENS,
        resident_adapters=max(1, num_adapters),
    )

    def load_adapter(key: str) -> AdapterWeights:
        return random_adapter(model, int(key))

    return create_sampling_engine(model, config, load_adapter)


def prompts_of(vocab_size: int, lengths: Sequence[int], seed: int = 0) -> list[np.ndarray[Any, np.dtype[np.int32]]]:
    """Random prompts."""
    rng = np.random.default_rng(seed)
    return [rng.integers(10, vocab_size, length).astype(np.int32) for length in lengths]


def run_to_end(
    engine: SamplingEngine, jobs: Sequence[SampleJob], counts: list[int] | None = None
) -> dict[str, SampleResult | RequestFailed]:
    """Results of jobs that must all succeed; `counts` gets the tokens computed for each."""
    for job in jobs:
        engine.add(job)
    results: dict[str, SampleResult | RequestFailed] = {}
    while engine.has_work():
        for ended in engine.step():
            if isinstance(ended.result, RequestFailed):
                raise ended.result
            results[ended.request_id] = ended.result
            if counts is not None:
                counts.append(ended.num_tokens)
    assert len(results) == len(jobs)
    return results


def decode(model: BaseModel, work: Work, limits: Limits, workload: str, name: str) -> Part:
    """One batch size, on the base or over 8 snapshots."""
    batch = work.batches[0] if workload.endswith("64") else work.batches[1]
    num_adapters = min(8, batch) if workload.startswith("adapters") else 0
    sampling = Sampling(model, batch, work.prompt + work.new, num_adapters)
    rate, details = sampling.decode_rate(batch, work.prompt, work.new, num_adapters)
    limit = limits.decode_rate(batch, work.prompt + work.new / 2, num_adapters)
    return rate_part(workload, rate, limit, REQUIRED.get((name, workload)), **details)


def snapshots(model: BaseModel, work: Work) -> Part:
    """Every sequence on its own snapshot, beside the base alone."""
    sampling = Sampling(model, work.num_snapshots, work.prompt + work.new, work.num_snapshots)
    base, _ = sampling.decode_rate(work.num_snapshots, work.prompt, work.new)
    own, details = sampling.decode_rate(work.num_snapshots, work.prompt, work.new, work.num_snapshots)
    details |= {"rate": round(own, 1), "base_rate": round(base, 1)}
    return Part("snapshots / base", round(own / base, 3), "ratio", 1.0, round(own / base, 3), 0.85, details)


def shared(model: BaseModel, work: Work) -> Part:
    """Groups that share their prompts, beside as many sequences with prompts of their own."""
    num_sequences = work.groups**2
    sampling = Sampling(model, num_sequences, work.group_prompt + work.group_new, 0)
    own, _ = sampling.decode_rate(num_sequences, work.group_prompt, work.group_new)
    together, details = sampling.decode_rate(work.groups, work.group_prompt, work.group_new, 0, work.groups)
    computed = details["prompt_tokens_computed"]
    assert computed == work.groups * work.group_prompt, f"{computed} prompt tokens computed: not once a group"
    details |= {"rate": round(together, 1), "unshared_rate": round(own, 1)}
    ratio = round(together / own, 3)
    return Part("shared / unshared", ratio, "ratio", None, None, 0.9, details)


def uniform(model: BaseModel, work: Work, limits: Limits, name: str) -> Part:
    """Prompts and lengths drawn as vLLM's were: all prompts first, token by token."""
    num_sequences, low, high = work.uniform
    draw = random.Random(0)
    prompts = [len([draw.randint(0, 10000) for _ in range(draw.randint(low, high))]) for _ in range(num_sequences)]
    new = [draw.randint(low, high) for _ in range(num_sequences)]
    sampling = Sampling(model, num_sequences, 2 * high, 0, sum(prompts) + sum(new))
    sampling.seconds(prompts, new)
    taken, _ = sampling.seconds(prompts, new)
    limit = limits.decode_rate(num_sequences, (low + high) * 0.75)
    return rate_part("uniform", sum(new) / taken, limit, REQUIRED.get((name, "uniform")), tokens=sum(new))


def profile(model: BaseModel, work: Work, num_adapters: int) -> str:
    """Where the time of a few calls of `step` goes, kernel by kernel, with all sequences decoding."""
    batch = work.batches[1]
    sampling = Sampling(model, batch, work.prompt + work.new, num_adapters)
    sampling.decode_rate(batch, work.prompt, work.new, num_adapters)
    engine = sampling.begin(batch, work.prompt, work.new, num_adapters)
    while engine.stats().num_waiting:
        engine.step()
    for _ in range(PROFILED_CALLS):
        engine.step()  # how long a step takes is known after some
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(PROFILED_CALLS):
            engine.step()
    order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=70)


def part_of(model: BaseModel, workload: str, work: Work, name: str) -> Part:
    """The figure of one workload on one model."""
    limits = limits_of(model, RANK)
    if workload == "snapshots":
        return snapshots(model, work)
    if workload == "shared":
        return shared(model, work)
    if workload == "uniform":
        return uniform(model, work, limits, name)
    return decode(model, work, limits, workload, name)


def add_options(parser: ArgumentParser) -> None:
    """Those of this benchmark alone."""
    rows = [f"{model}:{workload}" for model in SHAPES for workload in WORKLOADS]
    parser.add_argument("--only", nargs="+", choices=rows, metavar="MODEL:WORKLOAD", help="these rows, in one result")
    parser.add_argument("--profile", action="store_true", help="print the 25 kernels that take most time")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = options_of(__doc__, WORKLOADS, argv, add_options)
    chosen: dict[str, list[str]] = {}
    for row in options.only or [f"{options.model}:{workload}" for workload in options.workloads]:
        name, _, workload = row.partition(":")
        chosen.setdefault(name, []).append(workload)
    work = make_work(options.tiny)
    parts: list[Part] = []
    twin: dict[str, Any] = {"what": "one sequence at a time", "unit": "tok/s"}
    for name, workloads in chosen.items():
        model = create_model(name, options.tiny)
        for workload in workloads:
            part = part_of(model, workload, work, name)
            parts.append(replace(part, workload=f"{name} {part.workload}") if len(chosen) > 1 else part)
            print(f"{name} {part.workload}: {part.value} {part.unit}", file=sys.stderr)
            free_memory()
        if options.profile:
            print(profile(model, work, min(8, work.batches[1]) if "adapters256" in workloads else 0))
        alone, _ = Sampling(model, 1, work.prompt + 32, 0).decode_rate(1, work.prompt, 4 if options.tiny else 32)
        twin.setdefault("value", round(alone, 1))
        del model
        free_memory()
    return finish("sample", parts, twin, options)


def free_memory() -> None:
    """Engines that have ended hold theirs in cycles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
