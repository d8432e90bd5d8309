"""Runs sample requests: adds them to the engines, steps the engines, hands results on."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from structlog.contextvars import bound_contextvars

from openrl.errors import RequestFailed
from openrl.protocol.codec import encode_sample_response
from openrl.protocol.results import SampleResult
from openrl.rpc.messages import Outcome, Report, SampleDone, WorkItem
from openrl.sampling.base import FinishedSample, HasNews, SamplingEngine, SamplingStats
from openrl.telemetry.logs import get_logger, request_fields
from openrl.worker.attempts import attempt
from openrl.worker.deliverer import Deliverer, Parcel, PendingOutcome, Product
from openrl.worker.engines import EngineTable
from openrl.worker.payloads import PayloadReader
from openrl.worker.tenants import TenantCount
from openrl.worker.work_watch import WorkWatch

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class JobInHand:
    """A sample request that an engine has, and where the meter stood when it came."""

    base_model: str
    item: WorkItem
    num_samples: int
    meter_s: float
    added_at: float  # by the lane's clock


class SamplingLane:
    """Used from the compute thread only."""

    def __init__(
        self,
        engines: EngineTable,
        payloads: PayloadReader,
        results: Deliverer,
        clock: Callable[[], float],
        watch: WorkWatch,
    ) -> None:
        self._watch = watch
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
        with bound_contextvars(**request_fields(item)):
            failure = attempt(lambda: self._add(item), what="sample")
        if failure is not None:
            self._hand_on([PendingOutcome(item.request_id, failure, item=item)])

    def cancel(self, request_id: str) -> None:
        """Drop a request; nothing is reported. Unknown ones are fine."""
        job = self._forget(request_id)
        if job is not None:
            self._engines[job.base_model].sampling.cancel(request_id)

    def on_news(self, wake: Callable[[], None]) -> None:
        """Have `wake` called, from any thread, when an engine that computes elsewhere has something to hand on."""
        for engines in self._engines.values():
            engines.sampling.on_news(wake)

    def has_jobs(self) -> bool:
        """Whether an engine has anything, here or elsewhere."""
        return bool(self._jobs)

    def tenants(self) -> Collection[str]:
        """Who has work here; empty where `advance` would compute nothing."""
        has_work = any(self._engines[name].sampling.has_work() for name in self._turns)
        return self._tenants.present() if has_work else ()

    def advance(self, has_news: HasNews) -> None:
        """One engine step, cut short when there is news; engines of several base models take turns."""
        name = next(name for name in self._turns if self._engines[name].sampling.has_work())
        self._turns.remove(name)
        self._turns.append(name)
        started = self._clock()
        finished = attempt(lambda: self._engines[name].sampling.step(has_news), what="sampling")
        self._charge(self._clock() - started)
        if isinstance(finished, RequestFailed):
            self._fail_all(name, finished)
        elif finished:
            self._hand_on([self._ended(sample) for sample in finished])

    def rest(self) -> None:
        """There has been nothing to do for a while."""
        for engines in self._engines.values():
            engines.sampling.rest()
            engines.held.clear()

    def drop(self) -> None:
        """Forget every request; nothing is reported."""
        for request_id in list(self._jobs):
            self.cancel(request_id)
        self.rest()

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
            job.sampler.base_model, item, job.num_samples, self._meter_s, self._clock()
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
            self._tenants.leave([job.item.tenant_id])
        return job

    def _ended(self, sample: FinishedSample) -> PendingOutcome:
        job = self._forget(sample.request_id)
        pending = self._pending(sample, job)
        if job is not None:
            self._watch.sampled(job.item, pending, sample.part)
        return pending

    def _pending(self, sample: FinishedSample, job: JobInHand | None) -> PendingOutcome:
        item = None if job is None else job.item
        busy_s = 0.0 if job is None else (self._meter_s - job.meter_s) * job.num_samples
        if sample.device_s is not None:
            busy_s = sample.device_s
            self.busy_s += busy_s
        wall_s = 0.0 if job is None else self._clock() - job.added_at
        result = sample.result
        if isinstance(result, RequestFailed):
            return PendingOutcome(sample.request_id, result, sample.num_tokens, busy_s, wall_s, item=item)
        return PendingOutcome(
            sample.request_id,
            _encoder(result),
            sample.num_tokens,
            busy_s,
            wall_s,
            num_sampled_tokens=sum(len(sequence.tokens) for sequence in result.sequences),
            num_cached_tokens=result.prompt_cache_hit_tokens,
            item=item,
        )

    def _fail_all(self, base_model: str, failure: RequestFailed) -> None:
        """A step that broke leaves its engine's batch in doubt: every job in it fails and is dropped."""
        lost = [request_id for request_id, job in self._jobs.items() if job.base_model == base_model]
        for request_id in lost:
            log.error("sample lost with its batch", error=str(failure), **request_fields(self._jobs[request_id].item))
            self.cancel(request_id)
        self._hand_on([PendingOutcome(request_id, failure) for request_id in lost])

    def _hand_on(self, pending: Sequence[PendingOutcome]) -> None:
        self._results.put(Parcel(tuple(pending), _sample_done))


def _sample_done(outcomes: tuple[Outcome, ...]) -> Report:
    return SampleDone(outcomes)


def _encoder(result: SampleResult) -> Callable[[], Product]:
    return lambda: Product(encode_sample_response(result))
