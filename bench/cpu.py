"""Training and sampling of eight runs on the CPU, beside a plain transformers + PEFT loop on the same work.

    python -m bench.cpu --json [--model gemma-3-270m] [--repeats 3]

The mixed batch is that of the text-to-SQL job: four runs in their supervised warm-up (different prompts), four in
reinforcement learning (a group of samples of one prompt). Each side runs in a process of its own, so that its peak
memory is its own; medians count. The loop does what a per-run trainer does: one adapter after the other, padded
batches, full logits.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.peft_loop import PeftLoop
from openrl.cli.model_paths import find_model
from openrl.config import SamplingConfig, TrainingConfig, worker_environment
from openrl.model.adapter import AdapterWeights, initial_adapter
from openrl.model.base_model import BaseModel, ModelSource, load_base_model
from openrl.protocol.datum import Datum, ForwardBackwardInput, LossInput
from openrl.protocol.runs import RunSpec, SamplerSpec
from openrl.sampling.base import SampleJob, SamplingOptions
from openrl.sampling.engine import create_sampling_engine
from openrl.training.engine import create_training_engine

NUM_RUNS = 8
NUM_SUPERVISED = 4
DATUMS_PER_RUN = 6
PROMPTS_PER_RUN = 4
NEW_TOKENS = 24
RANK = 16
SIDES = ("openrl-train", "peft-train", "openrl-sample", "peft-sample")


@dataclass(frozen=True, slots=True)
class Measured:
    """What one side achieved in one process."""

    tokens_per_s: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Work:
    """Token sequences and how much of each is completion; the same for both sides."""

    sequences: list[list[int]]  # NUM_RUNS * DATUMS_PER_RUN; the last runs' share their prompts
    completions: list[int]
    prompts: list[list[int]]  # NUM_RUNS * PROMPTS_PER_RUN


def make_work(vocab_size: int) -> Work:
    """Prompts of 60-200 tokens with completions of 10-30, as the text-to-SQL job has them."""
    rng = np.random.default_rng(0)
    completions = [int(n) for n in rng.integers(10, 30, NUM_RUNS * DATUMS_PER_RUN)]
    sequences: list[list[int]] = []
    prompt: list[int] = []
    for index, completion in enumerate(completions):
        run, place = divmod(index, DATUMS_PER_RUN)
        if run < NUM_SUPERVISED or place == 0:
            prompt = rng.integers(10, vocab_size, int(rng.integers(60, 200))).tolist()
        sequences.append(prompt + rng.integers(10, vocab_size, completion).tolist())
    prompts = [rng.integers(10, vocab_size, int(n)).tolist() for n in rng.integers(60, 200, NUM_RUNS * PROMPTS_PER_RUN)]
    return Work(sequences, completions, prompts)


def _spec(run: int) -> RunSpec:
    return RunSpec(f"run{run}", "bench", "bench", RANK, run, True, True, False)


def openrl_train(model: BaseModel, work: Work) -> Callable[[], int]:
    """One packed forward and backward of all runs' requests."""
    engine = create_training_engine(model, TrainingConfig(), Path("/tmp/openrl-bench-scratch"))
    jobs: list[ForwardBackwardInput] = []
    for run in range(NUM_RUNS):
        engine.open_run(_spec(run), None)
        chosen = range(run * DATUMS_PER_RUN, (run + 1) * DATUMS_PER_RUN)
        loss = "cross_entropy" if run < NUM_SUPERVISED else "importance_sampling"
        data = tuple(_datum(work.sequences[i], work.completions[i], loss) for i in chosen)
        jobs.append(ForwardBackwardInput(f"run{run}", 1, data, loss))

    def once() -> int:
        for _ in engine.forward_backward(jobs):
            pass
        return sum(len(s) for s in work.sequences)

    return once


def _datum(sequence: list[int], completion: int, loss: str) -> Datum:
    wanted = np.zeros(len(sequence) - 1, np.float32)
    wanted[-completion:] = 1.0
    tokens = np.array(sequence, np.int32)
    inputs: dict[str, LossInput] = {"target_tokens": tokens[1:].astype(np.int64)}
    if loss == "cross_entropy":
        inputs["weights"] = wanted
    else:
        inputs["advantages"] = wanted
        inputs["logprobs"] = np.where(wanted, -12.5, 0.0).astype(np.float32)  # near those of random tokens
    return Datum(tokens[:-1], inputs)


def openrl_sample(model: BaseModel, work: Work) -> Callable[[], int]:
    """All runs' prompts in one continuous batch."""

    def load_adapter(key: str) -> AdapterWeights:
        return initial_adapter(model.linear_shapes, _spec(int(key)))

    engine = create_sampling_engine(model, SamplingConfig(), load_adapter)
    rounds = iter(range(1_000))

    def once() -> int:
        turn = next(rounds)
        for index, prompt in enumerate(work.prompts):
            run = index // PROMPTS_PER_RUN
            options = SamplingOptions(max_tokens=NEW_TOKENS, seed=index, stops_at_eos=False)
            sampler = SamplerSpec(f"s{run}", model.name, str(run))
            # The first token differs from round to round: no prefix is found in the cache.
            tokens = np.array([turn + 2, *prompt[1:]], np.int32)
            engine.add(SampleJob(f"{turn}-{index}", sampler, tokens, 1, options))
        num_tokens = 0
        while engine.has_work():
            for ended in engine.step():
                num_tokens += sum(len(s.tokens) for s in getattr(ended.result, "sequences", ()))
        return num_tokens

    return once


def side_of(name: str, path: Path) -> Callable[[], int]:
    """The work of one side, ready to be repeated; returns tokens done."""
    if name.startswith("openrl"):
        model = load_base_model(ModelSource("bench", path, torch.device("cpu"), torch.float32))
        work = make_work(model.vocab_size)
        return openrl_train(model, work) if name.endswith("train") else openrl_sample(model, work)
    loop = PeftLoop(path, NUM_RUNS, RANK)
    work = make_work(loop.vocab_size)
    if name.endswith("train"):
        return lambda: loop.train(work.sequences, work.completions, DATUMS_PER_RUN)
    return lambda: loop.sample(work.prompts, PROMPTS_PER_RUN, NEW_TOKENS)


def run_side(name: str, path: Path, repeats: int) -> Measured:
    """Warm up once, then the median rate of `repeats`."""
    once = side_of(name, path)
    once()
    rates: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        rates.append(once() / (time.perf_counter() - start))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Measured(statistics.median(rates), peak)


def measure(name: str, path: Path, repeats: int) -> Measured:
    """run_side in a child process."""
    command = [sys.executable, "-m", "bench.cpu", "--side", name, "--path", str(path), "--repeats", str(repeats)]
    environment = worker_environment(Path(tempfile.gettempdir()))
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return Measured(**json.loads(output.splitlines()[-1]))


def summary(measured: dict[str, Measured], model: str) -> dict[str, Any]:
    """The benchmark's result: our figures, the loop's, ratios."""
    result: dict[str, Any] = {"benchmark": "cpu", "model": model, "threads": torch.get_num_threads(), "runs": NUM_RUNS}
    for work in ("train", "sample"):
        ours, theirs = measured[f"openrl-{work}"], measured[f"peft-{work}"]
        result[work] = {
            "value": round(ours.tokens_per_s, 1),
            "unit": "tok/s",
            "peft_loop": round(theirs.tokens_per_s, 1),
            "ratio": round(ours.tokens_per_s / theirs.tokens_per_s, 2),
            "required_ratio": 2.0,
            "peak_gib": round(ours.peak_bytes / 2**30, 2),
            "peft_peak_gib": round(theirs.peak_bytes / 2**30, 2),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print only the result line")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(asdict(run_side(options.side, options.path, options.repeats))))
        return
    path = find_model(options.model).path
    measured: dict[str, Measured] = {}
    for name in SIDES:
        measured[name] = measure(name, path, options.repeats)
        if not options.json:
            print(f"{name:14} {measured[name].tokens_per_s:8.1f} tok/s {measured[name].peak_bytes / 2**30:6.2f} GiB")
    print(json.dumps(summary(measured, options.model)))


if __name__ == "__main__":
    main()
