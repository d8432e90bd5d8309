"""How far the trainer's log-probabilities are from the sampler's, on tokens that the sampler drew.

    python -m bench.mismatch --json [--model qwen3-4b] [--tiny] [--record]

snapshot  200,000 tokens at temperature 1 under an adapter of rank 32, then a forward pass over them under the same
          adapter. KL is the mean of exp(d) - 1 - d, with d the trainer's minus the sampler's: never negative
base      the same under the base model's own weights (an adapter of zeros in the trainer)
On a CPU in fp32 the two must agree to rounding.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bench.models import RANK, create_model, random_adapter, run_spec, state_of
from bench.records import Part, finish, options_of
from bench.sample import make_engine, prompts_of, run_to_end
from bench.train import open_engine
from openrl.errors import RequestFailed
from openrl.model.base_model import BaseModel
from openrl.protocol.datum import Datum, ForwardBackwardInput
from openrl.protocol.results import SampleResult
from openrl.protocol.runs import SamplerSpec
from openrl.sampling.base import SampleJob, SamplingOptions
from openrl.training.base import finish_pass

WORKLOADS = ("snapshot", "base")
REQUIRED_KL = 2e-4
REQUIRED_ABS = 2e-2


def sampled(
    model: BaseModel, num_sequences: int, new_tokens: int, adapted: bool
) -> tuple[list[Datum], np.ndarray[Any, Any]]:
    """Sequences as datums of a forward pass, and the sampler's log-probabilities of the drawn tokens."""
    engine = make_engine(model, num_sequences, 64 + new_tokens, 1)
    sampler = SamplerSpec("s", "bench", "1" if adapted else None)
    prompts = prompts_of(model.vocab_size, [64] * num_sequences)
    chosen = SamplingOptions(max_tokens=new_tokens, seed=1, stops_at_eos=False)
    jobs = [SampleJob(str(i), sampler, prompt, 1, chosen) for i, prompt in enumerate(prompts)]
    results = run_to_end(engine, jobs)
    data: list[Datum] = []
    logprobs: list[Any] = []
    for index, prompt in enumerate(prompts):
        result = results[str(index)]
        assert isinstance(result, SampleResult)
        (sequence,) = result.sequences
        tokens = np.concatenate([prompt, sequence.tokens.astype(np.int32)])
        inputs: dict[str, Any] = {
            "target_tokens": tokens[1:].astype(np.int64),
            "weights": np.ones(len(tokens) - 1, np.float32),
        }
        data.append(Datum(tokens[:-1], inputs))
        logprobs.append(sequence.logprobs)
    return data, np.concatenate(logprobs)


def trained(model: BaseModel, data: Sequence[Datum], new_tokens: int, adapted: bool) -> np.ndarray[Any, Any]:
    """The trainer's log-probabilities of the last `new_tokens` of every datum."""
    engine = open_engine(model, [], 1)
    engine.open_run(run_spec(0), state_of(random_adapter(model, 1)) if adapted else None)
    job = ForwardBackwardInput("run0", 1, tuple(data), "cross_entropy", {}, True)
    (result,) = finish_pass(engine.forward_backward([job]))
    if isinstance(result, RequestFailed):
        raise result
    return np.concatenate([output["logprobs"][-new_tokens:] for output in result.outputs])


def compare(sampler: np.ndarray[Any, Any], trainer: np.ndarray[Any, Any], workload: str) -> Part:
    """KL and distances; fails where only rounding may differ and more does."""
    d = trainer.astype(np.float64) - sampler.astype(np.float64)
    is_equal = bool((d == 0).all())
    assert torch.cuda.is_available() or abs(d).max() < 1e-5, f"on a CPU rounding is all; off by {abs(d).max()}"
    kl = float(np.mean(np.expm1(d) - d))
    assert math.isfinite(kl)
    details = {
        "tokens": len(d),
        "mean_abs": float(abs(d).mean()),
        "required_mean_abs": REQUIRED_ABS,
        "max_abs": float(abs(d).max()),
        "is_bit_equal": is_equal,
    }
    return Part(workload, kl, "nats", REQUIRED_KL, round(kl / REQUIRED_KL, 4), REQUIRED_KL, details)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = options_of(__doc__, WORKLOADS, argv)
    model = create_model(options.model, options.tiny)
    num_sequences, new_tokens = (6, 20) if options.tiny else (256, 782)
    parts: list[Part] = []
    for workload in options.workloads:
        adapted = workload == "snapshot"
        data, sampler = sampled(model, num_sequences, new_tokens, adapted)
        parts.append(compare(sampler, trained(model, data, new_tokens, adapted), workload))
    twin = {"what": "the sampler itself", "value": 0.0, "unit": "nats", "rank": RANK}
    return finish("mismatch", parts, twin, options)


if __name__ == "__main__":
    main()
