"""Runs, datums and an engine to try things on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from openrl.config import TrainingConfig
from openrl.errors import RequestFailed
from openrl.model.base_model import BaseModel
from openrl.protocol.datum import Datum, ForwardBackwardInput
from openrl.protocol.results import ForwardBackwardResult
from openrl.protocol.runs import OptimizerFamily, RunSpec
from openrl.training.base import AdamParams, OptimizerParams, OptimStep, RunState, finish_pass
from openrl.training.engine import PackedTrainingEngine, create_training_engine

VOCAB = 515
ADAM = AdamParams(learning_rate=1e-2)


def engine_of(
    model: BaseModel, scratch: Path, *, shares_prefixes: bool = True, **settings: Any
) -> PackedTrainingEngine:
    """An engine with small micro-batches, so that requests span several."""
    config = TrainingConfig(**{"micro_batch_tokens": 64, **settings})
    return create_training_engine(model, config, scratch, shares_prefixes=shares_prefixes)


def run_spec(run_id: str, rank: int = 4, seed: int = 1, optimizer: OptimizerFamily = "adamw", **flags: bool) -> RunSpec:
    """A run that trains everything unless told otherwise."""
    trained = {"train_attn": True, "train_mlp": True, "train_unembed": True, **flags}
    return RunSpec(
        run_id=run_id, tenant_id="t", base_model="tiny", rank=rank, seed=seed, optimizer=optimizer, **trained
    )


def sft_datum(seed: int, length: int, width: int | None = None) -> Datum:
    """Random tokens, targets and weights; [N, width] targets where a width is given."""
    rng = np.random.default_rng(seed)
    shape = (length,) if width is None else (length, width)
    return Datum(
        tokens=rng.integers(3, VOCAB, length).astype(np.int32),
        loss_inputs={
            "target_tokens": rng.integers(3, VOCAB, shape).astype(np.int64),
            "weights": (rng.random(shape) * (rng.random(shape) > 0.3)).astype(np.float32),
        },
    )


def rl_datum(seed: int, length: int, prompt: int = 3) -> Datum:
    """Random tokens with a prompt (zeros) and sampled tokens near a random model's log-probabilities."""
    rng = np.random.default_rng(seed)
    sampled = np.arange(length) >= prompt
    return Datum(
        tokens=rng.integers(3, VOCAB, length).astype(np.int32),
        loss_inputs={
            "target_tokens": rng.integers(3, VOCAB, length).astype(np.int64),
            "logprobs": (sampled * rng.normal(-6.3, 0.3, length)).astype(np.float32),
            "advantages": (sampled * rng.normal(0.0, 1.0, length)).astype(np.float32),
        },
    )


def shared_datums(seed: int, prefix: int, lengths: Sequence[int], loss_fn: str = "cross_entropy") -> list[Datum]:
    """Datums whose first `prefix` rows are the same, with `lengths` rows of their own; weights differ everywhere."""
    make = sft_datum if loss_fn == "cross_entropy" else rl_datum
    first = make(seed, prefix + max(lengths))
    data: list[Datum] = []
    for index, length in enumerate(lengths):
        own = make(1000 * seed + index, prefix + length)
        inputs = dict(own.loss_inputs)
        inputs["target_tokens"] = np.concatenate([_targets(first)[:prefix], _targets(own)[prefix:]])
        tokens = np.concatenate([first.tokens[:prefix], own.tokens[prefix:]])
        data.append(Datum(tokens, inputs))
    return data


def _targets(datum: Datum) -> NDArray[np.int64]:
    targets = datum.loss_inputs["target_tokens"]
    assert isinstance(targets, np.ndarray)
    return targets.astype(np.int64)


def request(
    run_id: str, *data: Datum, loss_fn: str = "cross_entropy", forward_only: bool = False, **settings: float | str
) -> ForwardBackwardInput:
    """A forward_backward request."""
    return ForwardBackwardInput(run_id, 1, data, loss_fn, settings, forward_only)


def run_jobs(engine: PackedTrainingEngine, *jobs: ForwardBackwardInput) -> list[ForwardBackwardResult]:
    """Results of jobs that must all succeed."""
    results = finish_pass(engine.forward_backward(jobs))
    for result in results:
        assert not isinstance(result, RequestFailed), str(result)
    return [result for result in results if isinstance(result, ForwardBackwardResult)]


def step(engine: PackedTrainingEngine, run_id: str, params: OptimizerParams = ADAM) -> dict[str, float]:
    """Metrics of an optimizer step that must succeed."""
    (metrics,) = engine.optim_step([OptimStep(run_id, params)])
    assert not isinstance(metrics, RequestFailed), str(metrics)
    return metrics


def same_tensors(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether two dicts hold the same bits."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def same_state(left: RunState, right: RunState) -> bool:
    """Whether two runs are the same, bit for bit."""
    return (
        same_tensors(left.adapter, right.adapter)
        and same_tensors(left.optimizer, right.optimizer)
        and same_tensors(left.gradients, right.gradients)
    )


def same_outputs(left: ForwardBackwardResult, right: ForwardBackwardResult) -> bool:
    """Whether two results have the same outputs and metrics, bit for bit."""
    arrays = all(
        one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)
        for one, other in zip(left.outputs, right.outputs, strict=True)
    )
    return arrays and left.metrics == right.metrics
