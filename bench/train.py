"""Forward and backward passes of many runs through the training engine: tokens a second.

    python -m bench.train --json [--model qwen3-4b] [--workloads mixed many long16k] [--tiny] [--record]

mixed     the same sequences of 192-640 tokens as requests of 8 runs, and of 1 run; the two take turns
many      the same sequences as requests of 64 runs with ranks 4 to 128, one after the other if they do not fit
long16k   one sequence of 16,384 tokens; long32k: 32,768
The twin is the engine itself with one sequence a pass, as a loop over datums computes.
"""

import itertools
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.limits import Limits, limits_of
from bench.models import RANK, create_model, run_spec
from bench.records import Part, finish, medians, options_of, peak_gib, rate_part
from openrl.config import TrainingConfig
from openrl.errors import RequestFailed
from openrl.model.base_model import BaseModel
from openrl.protocol.datum import Datum, ForwardBackwardInput
from openrl.training.base import finish_pass
from openrl.training.engine import PackedTrainingEngine, create_training_engine

WORKLOADS = ("mixed", "many", "long16k", "long32k")
RANKS = (4, 8, 16, 32, 64, 128)
LONG = {"long16k": 16384, "long32k": 32768}
REQUIRED = {"qwen3-4b": 27_000.0, "qwen3-0.6b": 95_000.0}
REQUIRED_LONG = 0.45
LIMIT_LENGTH = 2048  # the limit of `mixed` in numbers.md is for this length
RUN_BYTES = 40 * 2**30  # device memory that runs of `many` may take


@dataclass(frozen=True, slots=True)
class Work:
    """Sizes of the workloads."""

    num_sequences: int
    lengths: tuple[int, int]
    num_runs: int
    many_runs: int
    long: dict[str, int]


def make_work(tiny: bool) -> Work:
    """Sizes for a GPU, or for a test."""
    if tiny:
        return Work(8, (12, 40), 4, 8, {name: length // 128 for name, length in LONG.items()})
    return Work(64, (192, 640), 8, 64, LONG)


def random_datums(vocab_size: int, num: int, lengths: tuple[int, int], seed: int = 0) -> list[Datum]:
    """Datums with every next token as target."""
    rng = np.random.default_rng(seed)
    data: list[Datum] = []
    for length in rng.integers(lengths[0], lengths[1] + 1, num):
        tokens = rng.integers(10, vocab_size, int(length) + 1)
        inputs: dict[str, Any] = {"target_tokens": tokens[1:], "weights": np.ones(int(length), np.float32)}
        data.append(Datum(tokens[:-1].astype(np.int32), inputs))
    return data


def deal(data: Sequence[Datum], num_runs: int) -> list[ForwardBackwardInput]:
    """One request of every run; together they have each datum once."""
    parts = [tuple(data[run::num_runs]) for run in range(num_runs)]
    return [ForwardBackwardInput(f"run{run}", 1, part, "cross_entropy") for run, part in enumerate(parts)]


def one_pass(engine: PackedTrainingEngine, jobs: Sequence[ForwardBackwardInput]) -> Callable[[], None]:
    """Forward and backward of all jobs; every one must succeed with a finite loss."""

    def run() -> None:
        for result in finish_pass(engine.forward_backward(jobs)):
            if isinstance(result, RequestFailed):
                raise result
            assert math.isfinite(result.metrics["loss:sum"])

    return run


def open_engine(
    model: BaseModel, ranks: Sequence[int], resident_runs: int, micro_batch_tokens: int = 0
) -> PackedTrainingEngine:
    """An engine with a fresh run for every rank."""
    config = TrainingConfig(resident_runs=resident_runs, micro_batch_tokens=micro_batch_tokens, host_bytes=64 * 2**30)
    engine = create_training_engine(model, config, Path(tempfile.mkdtemp(prefix="openrl-bench-")))
    for run, rank in enumerate(ranks):
        engine.open_run(run_spec(run, rank), None)
    return engine


def mixed(model: BaseModel, work: Work, limits: Limits, name: str, repeats: int) -> tuple[list[Part], dict[str, Any]]:
    """Eight runs beside one, and the loop over datums."""
    data = random_datums(model.vocab_size, work.num_sequences, work.lengths)
    num_tokens = sum(datum.num_tokens for datum in data)
    engine = open_engine(model, [RANK] * work.num_runs, work.num_runs)
    peak_gib()
    seconds = medians(
        {
            "many": one_pass(engine, deal(data, work.num_runs)),
            "one": one_pass(engine, deal(data, 1)),
        },
        repeats,
    )
    memory = peak_gib()
    few = data[: max(1, len(data) // 8)]
    loop = open_engine(model, [RANK], 1, micro_batch_tokens=1)
    twin_s = medians({"loop": one_pass(loop, deal(few, 1))}, 1)["loop"]
    rate, limit = num_tokens / seconds["many"], limits.training_rate(LIMIT_LENGTH)
    ratio = seconds["one"] / seconds["many"]
    parts = [
        rate_part("mixed", rate, limit, REQUIRED.get(name), tokens=num_tokens, runs=work.num_runs, peak_gib=memory),
        Part("mixed: 8 runs / 1 run", round(ratio, 3), "ratio", 1.0, round(ratio, 3), 0.97),
    ]
    twin = {"what": "one sequence a pass", "value": round(sum(d.num_tokens for d in few) / twin_s, 1), "unit": "tok/s"}
    return parts, twin


def many(model: BaseModel, work: Work, limits: Limits, repeats: int) -> list[Part]:
    """Runs of all ranks beside one run of rank 32; as many at once as their memory allows."""
    data = random_datums(model.vocab_size, work.num_sequences, work.lengths)
    num_tokens = sum(datum.num_tokens for datum in data)
    ranks = [rank for rank, _ in zip(itertools.cycle(RANKS), range(work.many_runs), strict=False)]
    per_rank = limits.lora // RANK
    # Weights, moments and gradient in fp32; the slots of the bank are as wide as the largest rank.
    run_bytes = per_rank * (16 * sum(ranks) // len(ranks) + 2 * max(ranks))
    resident = max(1, min(len(ranks), RUN_BYTES // run_bytes))
    single = open_engine(model, [RANK], 1)
    engine = open_engine(model, ranks, resident)
    peak_gib()
    actions = {"many": one_pass(engine, deal(data, len(ranks))), "one": one_pass(single, deal(data, 1))}
    # Runs that take turns on the device take long: their buffers travel.
    seconds = medians(actions, repeats if resident == len(ranks) else 1)
    ratio = seconds["one"] / seconds["many"]
    details = {"runs": len(ranks), "resident_runs": resident, "peak_gib": peak_gib()}
    return [
        Part("many: runs / 1 run", round(ratio, 3), "ratio", 1.0, round(ratio, 3), 0.85, details),
        rate_part("many", num_tokens / seconds["many"], limits.training_rate(LIMIT_LENGTH)),
    ]


def long_context(model: BaseModel, limits: Limits, workload: str, length: int, repeats: int) -> Part:
    """One long sequence of one run."""
    engine = open_engine(model, [RANK], 1)
    peak_gib()
    data = random_datums(model.vocab_size, 1, (length, length))
    seconds = medians({"long": one_pass(engine, deal(data, 1))}, repeats)["long"]
    limit = limits.training_rate(length)
    return rate_part(workload, length / seconds, limit, REQUIRED_LONG * limit, tokens=length, peak_gib=peak_gib())


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = options_of(__doc__, WORKLOADS, argv)
    model = create_model(options.model, options.tiny)
    limits, work = limits_of(model, RANK), make_work(options.tiny)
    parts: list[Part] = []
    twin: dict[str, Any] | None = None
    for workload in options.workloads:
        if workload == "mixed":
            found, twin = mixed(model, work, limits, options.model, options.repeats)
            parts += found
        elif workload == "many":
            parts += many(model, work, limits, options.repeats)
        else:
            parts.append(long_context(model, limits, workload, work.long[workload], options.repeats))
    return finish("train", parts, twin, options)


if __name__ == "__main__":
    main()
