"""Engines that move a clock in place of computing: step times of one H100 from what was measured there.

Training: seconds of a compiled micro-batch are a start and a rate, fitted to the measured 8,192 tokens; the start
(START_S) is an assumption. Decode: the bytes read (weights once, the cache of each sequence, each adapter once) over
3.0 TB/s, times a factor and plus a constant fitted to vLLM's measured steps at 64 and 256 sequences. Prefill: the
arithmetic of a forward pass at 55 % of the peak. No torch here.
"""

from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

from bench.noop_worker import NoopCopy
from openrl.errors import RequestFailed
from openrl.protocol.datum import ForwardBackwardInput
from openrl.protocol.results import ForwardBackwardResult, SampleResult
from openrl.protocol.runs import RunSpec
from openrl.sampling.base import FinishedSample, HasNews, SampleJob, SamplingStats, no_news
from openrl.training.base import OptimStep, RunState
from openrl.training.packing import pack

BYTES_PER_S = 3.0e12
FLOPS_PER_S = 0.55 * 798e12
START_S = 0.012


@dataclass(frozen=True, slots=True)
class DeviceTimes:
    """What one device takes for one model; `limit_s` of a decode step is its bytes over the bandwidth."""

    name: str
    weight_bytes: float
    cache_token_bytes: float
    adapter_bytes: float
    decode_factor: float
    decode_start_s: float
    forward_token_flops: float
    train_8k_s: float  # measured
    optim_s: float = 0.005
    export_s: float = 0.003

    def train_s(self, rows: int) -> float:
        """A micro-batch, forward and backward."""
        return START_S + (self.train_8k_s - START_S) / 8192 * rows

    def sample_s(self, num_sequences: int, cached_tokens: int, num_adapters: int, prefill_tokens: int) -> float:
        """A step that decodes one token of each sequence and computes some prompt tokens."""
        read_bytes = self.weight_bytes + cached_tokens * self.cache_token_bytes + num_adapters * self.adapter_bytes
        decode_s = self.decode_start_s + self.decode_factor * read_bytes / BYTES_PER_S if num_sequences else 0.0
        return decode_s + prefill_tokens * self.forward_token_flops / FLOPS_PER_S


QWEN3_4B = DeviceTimes("Qwen3-4B", 8.04e9, 147456, 132e6, 1.56, 0.0, 8.65e9, 0.371)
QWEN3_06B = DeviceTimes("Qwen3-0.6B", 1.19e9, 114688, 40e6, 1.41, 0.0027, 1.42e9, 8192 / 57_100)


@dataclass(slots=True)
class VirtualClock:
    """Seconds since the start."""

    now: float = 0.0


@dataclass(slots=True)
class Delays:
    """How long decoding sequences waited for the device between two of their steps."""

    gaps_s: list[float] = field(default_factory=list[float])

    def worst_s(self) -> float:
        """The longest wait."""
        return max(self.gaps_s, default=0.0)

    def quantile_s(self, share: float) -> float:
        """This share of the waits that were not zero is shorter."""
        gaps = sorted(gap for gap in self.gaps_s if gap > 0)
        return gaps[int(share * (len(gaps) - 1))] if gaps else 0.0


class VirtualTraining:
    """Takes time for rows; `rows_of` gives the rows of a request's prefix groups."""

    def __init__(
        self,
        times: DeviceTimes,
        clock: VirtualClock,
        micro_batch_tokens: int,
        rows_of: Callable[[str, int], Sequence[int]],
    ) -> None:
        self._times = times
        self._clock = clock
        self._micro_batch_tokens = micro_batch_tokens
        self._rows_of = rows_of
        self.largest_group_s = 0.0  # what cannot be divided

    def open_run(self, run: RunSpec, state: RunState | None) -> None:
        del run, state

    def close_run(self, run_id: str) -> None:
        del run_id

    def copy_adapter(self, run_id: str) -> NoopCopy:
        self.export_run(run_id)  # at most: the copy to the host goes on beside what is computed
        return NoopCopy()

    def export_run(self, run_id: str) -> RunState:
        del run_id
        self._clock.now += self._times.export_s
        return RunState({}, {}, {})

    def load_weights(self, run_id: str, state: RunState, with_optimizer: bool) -> None:
        del run_id, state, with_optimizer

    def forward_backward(
        self, jobs: Sequence[ForwardBackwardInput], max_rows: Callable[[], int] | None = None
    ) -> Generator[int, None, list[ForwardBackwardResult | RequestFailed]]:
        most = self._micro_batch_tokens
        lengths = [self._rows_of(job.run_id, job.seq_id) for job in jobs]
        largest = max((rows for job in lengths for rows in job), default=0)
        self.largest_group_s = max(self.largest_group_s, self._times.train_s(largest))
        for places in pack(lengths, lambda: min(max_rows(), most) if max_rows else most):
            rows = sum(lengths[place.job][place.group] for place in places)
            self._clock.now += self._times.train_s(rows)
            yield rows
        return [ForwardBackwardResult((), {}) for _ in jobs]

    def drop_gradients(self, run_id: str) -> None:
        del run_id

    def optim_step(self, steps: Sequence[OptimStep]) -> list[dict[str, float] | RequestFailed]:
        self._clock.now += self._times.optim_s * len(steps)
        return [{} for _ in steps]


@dataclass(slots=True)
class ActiveSample:
    """A request under way."""

    job: SampleJob
    lengths: Sequence[int]  # tokens that each sample will have
    prefill_left: int
    num_started: int = 0
    num_ended: int = 0


class VirtualSampling:
    """Continuous batching with a clock: prompts once a request and in chunks, then one token a step."""

    def __init__(
        self,
        times: DeviceTimes,
        clock: VirtualClock,
        lengths_of: Callable[[str], Sequence[int]],
        max_sequences: int = 256,
        prefill_tokens: int = 8192,
    ) -> None:
        self._times = times
        self._clock = clock
        self._lengths_of = lengths_of
        self._max_sequences = max_sequences
        self._prefill_tokens = prefill_tokens
        self._prefilling: deque[ActiveSample] = deque()
        self._ready: deque[ActiveSample] = deque()
        self._ends: dict[int, list[tuple[ActiveSample, int]]] = {}  # with the sample's length, by step number
        self._adapters: Counter[str | None] = Counter()  # of running sequences
        self._num_running = 0
        self._num_waiting = 0
        self._cached_tokens = 0
        self._step = 0
        self._last_end_s = 0.0
        self.delays = Delays()

    def add(self, job: SampleJob) -> None:
        self._prefilling.append(ActiveSample(job, self._lengths_of(job.request_id), len(job.prompt)))
        self._num_waiting += job.num_samples

    def cancel(self, request_id: str) -> None:
        raise NotImplementedError(request_id)

    def on_news(self, wake: Callable[[], None]) -> None:
        pass

    def rest(self) -> None:
        pass

    def has_work(self) -> bool:
        return bool(self._num_running or self._num_waiting)

    def step(self, has_news: HasNews = no_news) -> Sequence[FinishedSample]:
        del has_news
        if self._num_running:
            self.delays.gaps_s.append(self._clock.now - self._last_end_s)
        self._step += 1
        prefilled = self._prefill()
        self._clock.now += self._times.sample_s(self._num_running, self._cached_tokens, len(self._adapters), prefilled)
        self._cached_tokens += self._num_running
        finished = self._end()
        self._start()
        self._last_end_s = self._clock.now
        return finished

    def stats(self) -> SamplingStats:
        return SamplingStats(self._num_running, self._num_waiting, 0, 1)

    def _prefill(self) -> int:
        budget = self._prefill_tokens
        while self._prefilling and budget and self._num_running < self._max_sequences:
            head = self._prefilling[0]
            taken = min(budget, head.prefill_left)
            head.prefill_left -= taken
            budget -= taken
            if not head.prefill_left:
                self._ready.append(self._prefilling.popleft())
        return self._prefill_tokens - budget

    def _start(self) -> None:
        """Samples whose prompt is there join for the next step while there is room."""
        while self._ready and self._num_running < self._max_sequences:
            active = self._ready[0]
            length = active.lengths[active.num_started]
            self._ends.setdefault(self._step + length, []).append((active, length))
            active.num_started += 1
            self._num_running += 1
            self._num_waiting -= 1
            self._cached_tokens += len(active.job.prompt)
            self._adapters[active.job.sampler.adapter_key] += 1
            if active.num_started == active.job.num_samples:
                self._ready.popleft()

    def _end(self) -> list[FinishedSample]:
        finished: list[FinishedSample] = []
        for active, length in self._ends.pop(self._step, ()):
            active.num_ended += 1
            self._num_running -= 1
            self._cached_tokens -= len(active.job.prompt) + length
            self._adapters[active.job.sampler.adapter_key] -= 1
            if not self._adapters[active.job.sampler.adapter_key]:
                del self._adapters[active.job.sampler.adapter_key]
            if active.num_ended == active.job.num_samples:
                num_tokens = len(active.job.prompt) + sum(active.lengths)
                finished.append(FinishedSample(active.job.request_id, SampleResult(()), num_tokens))
        return finished
