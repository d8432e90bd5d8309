"""From a finished optimizer step to the first token of its snapshot, while others decode: milliseconds.

    python -m bench.handoff --json [--model qwen3-4b] [--tiny] [--record]

handoff   256 sequences decode on 8 older snapshots; a run steps, its adapter goes to the sampler as the worker sends
          it, and one request on the new snapshot waits for its first token
`stall_steps` is the longest time between two tokens of the others meanwhile, in steps of theirs. `mid_burst_ms` is for
a request that comes at the worst moment, just after the engine has asked for news and launched a step.
The twin is the same without a new snapshot: one request on a snapshot that the sampler already holds.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.models import create_model, random_adapter
from bench.records import Part, finish, options_of, synchronize
from bench.sample import BLOCK_TOKENS, prompts_of
from bench.train import deal, one_pass, open_engine, random_datums
from openrl.config import SamplingConfig
from openrl.errors import RequestFailed
from openrl.model.adapter import AdapterWeights
from openrl.model.base_model import BaseModel
from openrl.protocol.runs import SamplerSpec
from openrl.sampling.base import SampleJob, SamplingOptions
from openrl.sampling.engine import create_sampling_engine
from openrl.sampling.kv_cache import bytes_per_block
from openrl.training.base import AdamParams, OptimStep
from openrl.worker.held_adapters import HeldAdapters

WORKLOADS = ("handoff",)
REQUIRED_MS = 20.0
LIMIT_MS = 5.0  # the stretch of issue and numbers: a copy on the device is far below a decode step
OLD = 8
WARM_UP_STEPS = 24  # how long a step takes is an average
ASKED = 4  # times for news before a request that comes in the middle of a burst is seen


class Bench:
    """Both engines over one model, with the sampler busy."""

    def __init__(self, model: BaseModel, num_sequences: int, prompt: int, max_new: int) -> None:
        self._model = model
        self._num_new = 0
        self._held = HeldAdapters(2**33)
        self.training = open_engine(model, [32], 1)
        self._backward = one_pass(self.training, deal(random_datums(model.vocab_size, 1, (16, 16)), 1))
        block = bytes_per_block(model.num_layers, BLOCK_TOKENS, model.num_kv_heads, model.head_dim, model.dtype)
        num_blocks = (num_sequences + 2) * ((prompt + max_new) // BLOCK_TOKENS + 2)
        config = SamplingConfig(
            max_sequences=num_sequences + 1,
            cache_bytes=num_blocks * block,
            block_tokens=BLOCK_TOKENS,
            resident_adapters=2 * OLD,
        )
        self.sampling = create_sampling_engine(model, config, self._load_adapter)
        chosen = SamplingOptions(max_tokens=max_new, seed=1, stops_at_eos=False)
        for index, tokens in enumerate(prompts_of(model.vocab_size, [prompt] * num_sequences)):
            self.sampling.add(SampleJob(f"old{index}", _sampler(f"old{index % OLD}"), tokens, 1, chosen))
        while self.sampling.stats().num_waiting:
            self.sampling.step()
        for _ in range(WARM_UP_STEPS):
            self.sampling.step(lambda: True)

    def _load_adapter(self, key: str) -> AdapterWeights:
        return self._held.take(key) or random_adapter(self._model, int(key.removeprefix("old")))

    def step_s(self, num_steps: int) -> float:
        """Median seconds of a decode step of the others alone."""
        seconds: list[float] = []
        for _ in range(num_steps):
            started = time.perf_counter()
            self.sampling.step(lambda: True)
            synchronize()
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    def first_token(self, key: str, is_new: bool) -> tuple[float, float]:
        """Seconds from the optimizer step to the first token, and from there until all others have one more."""
        if is_new:
            self._backward()
            (metrics,) = self.training.optim_step([OptimStep("run0", AdamParams(learning_rate=1e-4))])
            assert not isinstance(metrics, RequestFailed)
        synchronize()
        started = time.perf_counter()
        if is_new:
            self._held.put(key, self.training.copy_adapter("run0").adapter)
        self._finish_new(key)
        first_s = time.perf_counter() - started
        self.sampling.step(lambda: True)
        synchronize()
        return first_s, time.perf_counter() - started

    def mid_burst(self, key: str) -> float:
        """Seconds to the first token of a request on a held snapshot that comes while a burst is under way."""
        asked: list[float] = []

        def has_news() -> bool:
            asked.append(time.perf_counter())
            return len(asked) >= ASKED

        self.sampling.step(has_news)
        came = asked[-2] if len(asked) > 1 else time.perf_counter()  # a CPU's bursts have one step
        self._finish_new(key)
        seconds = time.perf_counter() - came
        self.sampling.step(lambda: True)  # then it is the others' turn
        return seconds

    def _finish_new(self, key: str) -> None:
        """Add a request and step until it has its token."""
        chosen = SamplingOptions(max_tokens=1, seed=1, stops_at_eos=False)
        tokens = np.arange(10, 26, dtype=np.int32)
        self._num_new += 1
        self.sampling.add(SampleJob(f"new-{self._num_new}", _sampler(key), tokens, 1, chosen))
        has_ended = False
        while not has_ended:
            for each in self.sampling.step(lambda: True):
                if isinstance(each.result, RequestFailed):
                    raise each.result
                has_ended = has_ended or each.request_id.startswith("new")
        synchronize()


def _sampler(key: str) -> SamplerSpec:
    return SamplerSpec(f"s-{key}", "bench", key)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = options_of(__doc__, WORKLOADS, argv)
    model = create_model(options.model, options.tiny)
    num_sequences, prompt, max_new = (6, 12, 200) if options.tiny else (256, 256, 512)
    bench = Bench(model, num_sequences, prompt, max_new)
    step_s = bench.step_s(5)
    bench.first_token("warm", is_new=True)
    bench.mid_burst("warm")
    mid_burst: list[float] = []
    known: list[float] = []
    new: list[tuple[float, float]] = []
    for turn in range(options.repeats):
        known.append(bench.first_token("warm", is_new=False)[0])
        new.append(bench.first_token(f"v{turn}", is_new=True))
        mid_burst.append(bench.mid_burst("warm"))
    assert bench.sampling.stats().num_running == num_sequences, "the others must decode all the time"
    seconds = statistics.median(each[0] for each in new)
    stall = statistics.median(each[1] for each in new) / step_s
    details = {
        "step_ms": round(1e3 * step_s, 3),
        "stall_steps": round(stall, 2),
        "required_stall_steps": 2.0,
        "mid_burst_ms": round(1e3 * statistics.median(mid_burst), 3),
    }
    value = round(1e3 * seconds, 3)
    part = Part("handoff", value, "ms", LIMIT_MS, round(LIMIT_MS / value, 3), REQUIRED_MS, details)
    twin_ms = round(1e3 * statistics.median(known), 3)
    return finish("handoff", [part], {"what": "a snapshot already held", "value": twin_ms, "unit": "ms"}, options)


if __name__ == "__main__":
    main()
