"""Short ways to make sample jobs and run them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from openrl.config import SamplingConfig
from openrl.errors import NotFound, RequestFailed
from openrl.model.adapter import AdapterWeights, LoraPair
from openrl.model.base_model import BaseModel
from openrl.protocol.results import SampleResult
from openrl.protocol.runs import SamplerSpec
from openrl.sampling.base import SampleJob, SamplingEngine, SamplingOptions
from openrl.sampling.engine import PagedSamplingEngine, create_sampling_engine
from openrl.sampling.kv_cache import bytes_per_block

BLOCK_TOKENS = 16


def job(
    request_id: str,
    prompt: Sequence[int],
    *,
    num_samples: int = 1,
    adapter: str | None = None,
    sampler_id: str = "s",
    extra: Mapping[str, Any] | None = None,
    **options: Any,
) -> SampleJob:
    """A job with seed 1 and no end-of-sequence rule unless the options say otherwise."""
    defaults: dict[str, Any] = {"seed": 1, "max_tokens": 8, "stops_at_eos": False}
    chosen = SamplingOptions(**{**defaults, **options})
    sampler = SamplerSpec(sampler_id, "tiny", adapter)
    return SampleJob(request_id, sampler, np.array(prompt, np.int32), num_samples, chosen, **(extra or {}))


def adapter_weights(model: BaseModel, seed: int, rank: int = 4) -> AdapterWeights:
    """An adapter on every linear that changes what the model says."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {
        name: LoraPair(
            torch.randn(rank, num_inputs, generator=generator) * 0.1,
            torch.randn(num_outputs, rank, generator=generator) * 0.02,
        )
        for name, (num_inputs, num_outputs) in model.linear_shapes.items()
    }
    return AdapterWeights(rank, pairs)


def engine(model: BaseModel, num_blocks: int = 256, **settings: Any) -> PagedSamplingEngine:
    """An engine with so many blocks; adapter key "n" holds `adapter_weights(model, n)`, other keys do not exist."""
    block_bytes = bytes_per_block(model.num_layers, BLOCK_TOKENS, model.num_kv_heads, model.head_dim, model.dtype)
    config = SamplingConfig(cache_bytes=num_blocks * block_bytes, block_tokens=BLOCK_TOKENS, **settings)

    def load_adapter(key: str) -> AdapterWeights:
        if not key.isdigit():
            raise NotFound(f"no adapter {key!r}")
        return adapter_weights(model, int(key), rank=4 + int(key) % 3)

    return create_sampling_engine(model, config, load_adapter)


def outcomes(sampling: SamplingEngine, jobs: Sequence[SampleJob]) -> dict[str, SampleResult | RequestFailed]:
    """What becomes of the jobs when they are added together."""
    for each in jobs:
        sampling.add(each)
    return drain(sampling)


def drain(sampling: SamplingEngine, max_steps: int = 5000) -> dict[str, SampleResult | RequestFailed]:
    """Step until there is no work; every request must end exactly once."""
    ended: dict[str, SampleResult | RequestFailed] = {}
    for _ in range(max_steps):
        if not sampling.has_work():
            return ended
        for finished in sampling.step():
            assert finished.request_id not in ended
            ended[finished.request_id] = finished.result
    raise AssertionError(f"not done after {max_steps} steps")


def sample(sampling: SamplingEngine, wanted: SampleJob) -> SampleResult:
    """The result of one job that must not fail."""
    result = outcomes(sampling, [wanted])[wanted.request_id]
    assert isinstance(result, SampleResult), result
    return result
