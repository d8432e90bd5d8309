"""Runs sample requests: adds them to the engines, steps the engines, hands results on."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from openrl.errors import RequestFailed
from openrl.protocol.codec import encode_sample_response
from openrl.protocol.results import SampleResult
from openrl.rpc.messages import Outcome, Report, SampleDone, WorkItem
from openrl.sampling.base import FinishedSample, SamplingEngine, SamplingStats
from openrl.worker.attempts import attempt
from openrl.worker.deliverer import Deliverer, Parcel, PendingOutcome, Product
from openrl.worker.engines import EngineTable
from openrl.worker.payloads import PayloadReader
from openrl.worker.tenants import TenantCount


@dataclass(frozen=True, slots=True)
class JobInHand:
    """A sample request that an engine has, and where the meter stood when it came."""

    base_model: str
    tenant_id: str
    num_samples: int
    meter_s: float
    added_at: float  # by the lane's clock


class SamplingLane:
    """Used from the compute thread only."""

    def __init__(
        self, engines: EngineTable, payloads: PayloadReader, results: Deliverer, clock: Callable[[], float]
    ) -> None:
        self._engines = engines
        self._payloads = payloads
        self._results = results
        self._clock = clock
        self._jobs: dict[str, JobInHand] = {}
        self._tenants = TenantCount()
        self._turns = list(engines)  # base models; the one that stepped last goes to the end
        # Device seconds that one sample has cost since the start, had it been there all along: a
        # step's time is divided evenly among the samples present, in one addition.
        self._meter_s = 0.0
        self._num_samples = 0
        self.busy_s = 0.0

    def add(self, item: WorkItem) -> None:
        """Queue a request; one that cannot be read fails alone."""
        failure = attempt(lambda: self._add(item), what="sample")
        if failure is not None:
            self._hand_on([PendingOutcome(item.request_id, failure)])

    def cancel(self, request_id: str) -> None:
        """Drop a request; nothing is reported. Unknown ones are fine."""
        job = self._forget(request_id)
        if job is not None:
            self._engines[job.base_model].sampling.cancel(request_id)

    def tenants(self) -> Collection[str]:
        """Who has work here; empty where `advance` would compute nothing."""
        has_work = any(self._engines[name].sampling.has_work() for name in self._turns)
        return self._tenants.present() if has_work else ()

    def advance(self) -> None:
        """One engine step; engines of several base models take turns."""
        name = next(name for name in self._turns if self._engines[name].sampling.has_work())
        self._turns.remove(name)
        self._turns.append(name)
        started = self._clock()
        finished = attempt(self._engines[name].sampling.step, what="sampling")
        self._charge(self._clock() - started)
        if isinstance(finished, RequestFailed):
            self._fail_all(name, finished)
        elif finished:
            self._hand_on([self._pending(sample) for sample in finished])

    def rest(self) -> None:
        """There has been nothing to do for a while."""
        for engines in self._engines.values():
            engines.sampling.rest()

    def stats(self) -> SamplingStats:
        """The engines' occupancy, added up."""
        all_stats = [engines.sampling.stats() for engines in self._engines.values()]
        return SamplingStats(
            num_running=sum(stats.num_running for stats in all_stats),
            num_waiting=sum(stats.num_waiting for stats in all_stats),
            kv_blocks_used=sum(stats.kv_blocks_used for stats in all_stats),
            kv_blocks_total=sum(stats.kv_blocks_total for stats in all_stats),
        )

    def _add(self, item: WorkItem) -> None:
        job = self._payloads.sample_job(item)
        engine = self._engine(job.sampler.base_model)
        engine.add(job)
        self._jobs[item.request_id] = JobInHand(
            job.sampler.base_model, item.tenant_id, job.num_samples, self._meter_s, self._clock()
        )
        self._tenants.enter([item.tenant_id])
        self._num_samples += job.num_samples

    def _engine(self, base_model: str) -> SamplingEngine:
        if base_model not in self._engines:
            raise RequestFailed(f"this worker does not serve base model {base_model!r}", "server")
        return self._engines[base_model].sampling

    def _charge(self, seconds: float) -> None:
        self.busy_s += seconds
        self._meter_s += seconds / max(self._num_samples, 1)

    def _forget(self, request_id: str) -> JobInHand | None:
        job = self._jobs.pop(request_id, None)
        if job is not None:
            self._num_samples -= job.num_samples
            self._tenants.leave([job.tenant_id])
        return job

    def _pending(self, sample: FinishedSample) -> PendingOutcome:
        job = self._forget(sample.request_id)
        busy_s = 0.0 if job is None else (self._meter_s - job.meter_s) * job.num_samples
        wall_s = 0.0 if job is None else self._clock() - job.added_at
        result = sample.result
        if isinstance(result, RequestFailed):
            return PendingOutcome(sample.request_id, result, sample.num_tokens, busy_s, wall_s)
        return PendingOutcome(
            sample.request_id,
            _encoder(result),
            sample.num_tokens,
            busy_s,
            wall_s,
            num_sampled_tokens=sum(len(sequence.tokens) for sequence in result.sequences),
            num_cached_tokens=result.prompt_cache_hit_tokens,
        )

    def _fail_all(self, base_model: str, failure: RequestFailed) -> None:
        """A step that broke leaves its engine's batch in doubt: every job in it fails and is dropped."""
        lost = [request_id for request_id, job in self._jobs.items() if job.base_model == base_model]
        for request_id in lost:
            self.cancel(request_id)
        self._hand_on([PendingOutcome(request_id, failure) for request_id in lost])

    def _hand_on(self, pending: Sequence[PendingOutcome]) -> None:
        self._results.put(Parcel(tuple(pending), _sample_done))


def _sample_done(outcomes: tuple[Outcome, ...]) -> Report:
    return SampleDone(outcomes)


def _encoder(result: SampleResult) -> Callable[[], Product]:
    return lambda: Product(encode_sample_response(result))
