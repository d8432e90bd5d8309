"""The sampling engine over a pool of vLLM servers: nothing is computed here, so a step only hands on what has ended.

The pool lives in an event loop in a thread of its own. See docs/vllm.md.
"""

import asyncio
import itertools
import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import uvloop

from openrl.config import SamplingConfig
from openrl.errors import InvalidRequest
from openrl.sampling.base import FinishedSample, HasNews, SampleJob, SamplingStats, no_news
from openrl.sampling.vllm_adapters import AdapterDirectory, ReadObject
from openrl.sampling.vllm_mapping import ModelFacts
from openrl.sampling.vllm_pool import Pool, PoolSettings
from openrl.sampling.vllm_replica import PoolFacts

_START_S = 30.0


class VllmSamplingEngine:
    """See SamplingEngine."""

    def __init__(
        self,
        settings: PoolSettings,
        facts: PoolFacts,
        clock: Callable[[], float] = time.perf_counter,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.max_sequences = settings.max_in_flight * len(settings.urls)
        self._settings = settings
        self._facts = facts
        self._clock = clock
        self._on_close = on_close
        self._tickets = itertools.count()
        self._open: dict[str, int] = {}  # ticket by request id; a request that was cancelled may come again
        self._ended: queue.SimpleQueue[tuple[int, FinishedSample]] = queue.SimpleQueue()
        self._wake: Callable[[], None] = lambda: None
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="vllm")
        self._start()

    def on_news(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def add(self, job: SampleJob) -> None:
        assert job.request_id not in self._open, "a request is added once"
        ticket = self._open[job.request_id] = next(self._tickets)
        self._call(lambda: self._pool.add(ticket, job))

    def cancel(self, request_id: str) -> None:
        ticket = self._open.pop(request_id, None)
        if ticket is not None:
            self._call(lambda: self._pool.cancel(ticket))

    def has_work(self) -> bool:
        return not self._ended.empty() or self._running.done()

    def step(self, has_news: HasNews = no_news) -> Sequence[FinishedSample]:
        del has_news
        if self._running.done():
            broken = self._running
            self._open.clear()
            self._start()
            broken.result()
        ended: list[FinishedSample] = []
        while not self._ended.empty():
            ticket, finished = self._ended.get()
            if self._open.get(finished.request_id) == ticket:
                del self._open[finished.request_id]
                ended.append(finished)
        return ended

    def rest(self) -> None:
        """The servers look after their memory themselves."""

    def stats(self) -> SamplingStats:
        return self._pool.stats

    def close(self) -> None:
        """Drop everything and end the thread."""
        self._call(self._pool.close)
        self._threads.shutdown()
        self._on_close()

    def _start(self) -> None:
        ready: Future[asyncio.AbstractEventLoop] = Future()
        self._pool = Pool(self._settings, self._facts, self._take, self._clock)
        run = self._pool.run(lambda: ready.set_result(asyncio.get_running_loop()))
        self._running = self._threads.submit(lambda: uvloop.run(run))
        self._loop = ready.result(_START_S)
        self._running.add_done_callback(lambda _: self._wake())

    def _take(self, ticket: int, finished: FinishedSample) -> None:
        self._ended.put((ticket, finished))
        self._wake()

    def _call(self, action: Callable[[], None]) -> None:
        if not self._running.done():
            self._loop.call_soon_threadsafe(action)


def create_vllm_engine(
    config: SamplingConfig,
    model: ModelFacts,
    directory: Path,
    read_object: ReadObject,
    on_close: Callable[[], None] = lambda: None,
) -> VllmSamplingEngine:
    """An engine over the servers of `sampling.vllm_urls`.

    `directory`: where this worker alone writes adapters; `on_close`: called when nothing of it is left.
    """
    if not config.vllm_urls:
        raise InvalidRequest('sampling.engine is "vllm" and sampling.vllm_urls is empty; name at least one server')
    key_file = config.vllm_api_key_file
    headers = {} if key_file is None else {"Authorization": f"Bearer {key_file.read_text().strip()}"}
    settings = PoolSettings(config.vllm_urls, config.vllm_max_in_flight, config.vllm_request_s, headers)
    adapters = AdapterDirectory(directory, read_object)
    adapters.clear_torn()
    facts = PoolFacts(model, adapters, config.resident_adapters, config.vllm_health_s)
    return VllmSamplingEngine(settings, facts, on_close=on_close)
