"""One small request of every kind through fresh engines, so that no client waits for what is compiled at first use."""

import time

import numpy as np

from openrl.errors import RequestFailed
from openrl.protocol.datum import Datum, ForwardBackwardInput, LossInput
from openrl.protocol.runs import RunSpec, SamplerSpec
from openrl.sampling.base import SampleJob, SamplingOptions
from openrl.telemetry.logs import get_logger
from openrl.training.base import AdamParams, OptimStep, finish_pass
from openrl.worker.engines import Engines

log = get_logger(__name__)

_RUN_ID = "warm-up"
_RANK = 32
_LENGTHS = (64, 200)
_PROMPTS = (100, 300)
"""On a GPU a short prompt and a longer one take different paths; see sampling.decode_graph."""
_NEW_TOKENS = 4


def warm_up(engines: Engines, *, trains: bool = True, samples: bool = True) -> None:
    """Train and sample a little; nothing of it stays. What fails is logged: a request would say it to its client."""
    started = time.perf_counter()
    failures = [*(_train(engines) if trains else ()), *(_sample(engines) if samples else ())]
    seconds = round(time.perf_counter() - started, 1)
    log.info("warmed up", base_model=engines.base_model.name, seconds=seconds)
    for failure in failures:
        log.warning("warm-up failed", base_model=engines.base_model.name, error=str(failure))


def _train(engines: Engines) -> list[RequestFailed]:
    engine = engines.training
    base_model = engines.base_model.name
    run = RunSpec(_RUN_ID, _RUN_ID, base_model, _RANK, 0, train_attn=True, train_mlp=True, train_unembed=False)
    engine.open_run(run, None)
    results: list[object] = []
    for is_forward_only in (False, True):
        data = tuple(_datum(length) for length in _LENGTHS)
        job = ForwardBackwardInput(_RUN_ID, 1, data, "cross_entropy", {}, is_forward_only)
        results += finish_pass(engine.forward_backward([job]))
    results += engine.optim_step([OptimStep(_RUN_ID, AdamParams(learning_rate=0.0))])
    engine.close_run(_RUN_ID)
    return [result for result in results if isinstance(result, RequestFailed)]


def _datum(length: int) -> Datum:
    tokens = np.arange(length, dtype=np.int32) % 7
    inputs: dict[str, LossInput] = {"target_tokens": tokens.astype(np.int64), "weights": np.ones(length, np.float32)}
    return Datum(tokens, inputs)


def _sample(engines: Engines) -> list[RequestFailed]:
    engine = engines.sampling
    sampler = SamplerSpec(_RUN_ID, engines.base_model.name, None)
    options = SamplingOptions(max_tokens=_NEW_TOKENS, temperature=1.0, seed=0, stops_at_eos=False)
    results: list[object] = []
    longest = engines.base_model.context_length - _NEW_TOKENS
    for length in _PROMPTS:
        prompt = np.arange(min(length, longest), dtype=np.int32) % 7
        engine.add(SampleJob(f"{_RUN_ID}-{length}", sampler, prompt, 2, options))
        while engine.has_work():
            results += [finished.result for finished in engine.step()]
    return [result for result in results if isinstance(result, RequestFailed)]
