"""Makes results durable and reports them, beside the compute thread."""

import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from openrl.errors import RequestFailed, WorkerLost
from openrl.rpc.messages import Outcome, Report, SavedCheckpoint, WorkItem
from openrl.store.base import Blobs
from openrl.worker.attempts import attempt
from openrl.worker.patience import SAVING_S, write_patiently

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Product:
    """What a request leaves behind: the bytes of its result, and a checkpoint if it made one."""

    body: bytes
    checkpoint: SavedCheckpoint | None = None


@dataclass(frozen=True, slots=True)
class PendingOutcome:
    """A computed request whose result is not stored yet."""

    request_id: str
    produce: Callable[[], Product] | RequestFailed | None  # None: a replay keeps nothing
    num_tokens: int = 0
    busy_s: float = 0.0
    wall_s: float = 0.0
    num_sampled_tokens: int = 0
    num_cached_tokens: int = 0
    item: WorkItem | None = None  # for the log


@dataclass(frozen=True, slots=True)
class Parcel:
    """Outcomes that travel in one report."""

    pending: tuple[PendingOutcome, ...]
    report: Callable[[tuple[Outcome, ...]], Report]


@dataclass(frozen=True, slots=True)
class Errand:
    """Something slow that ends in a report of its own; Unavailable makes it run again later."""

    run: Callable[[], Report]


Delivery = Parcel | Errand


class Deliverer:
    """One thread that takes deliveries in order; those that wait together are stored with one flush."""

    def __init__(
        self,
        blobs: Blobs,
        report: Callable[[Report], None],
        sleep: Callable[[float], None],
        max_group: int,
    ) -> None:
        self._blobs = blobs
        self._report = report
        self._sleep = sleep
        self._max_group = max_group
        self._inbox: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._is_abandoned = False

    def put(self, delivery: Delivery) -> None:
        """Hand over; returns at once. From any thread."""
        self._inbox.put(delivery)

    def close(self) -> None:
        """Let `run` return when everything handed over so far is reported."""
        self._inbox.put(None)

    def abandon(self) -> None:
        """Nobody waits for anything handed over here: let `run` return after the write under way."""
        self._is_abandoned = True
        self._inbox.put(None)

    def run(self) -> None:
        """The thread's loop; raises Unavailable when nothing can be stored for ten minutes."""
        is_open = True
        while is_open:
            group, is_open = self._take()
            if self._is_abandoned:
                return
            self._deliver([each for each in group if isinstance(each, Parcel)])
            for errand in group:
                if isinstance(errand, Errand):
                    self._report(self._wait_out(errand.run))

    def _take(self) -> tuple[list[Delivery], bool]:
        """Wait for a delivery and take what waits with it; false once the end is reached."""
        group: list[Delivery] = []
        while not group or (len(group) < self._max_group and not self._inbox.empty()):
            delivery = self._inbox.get()
            if delivery is None:
                return group, False
            group.append(delivery)
        return group, True

    def _deliver(self, parcels: Sequence[Parcel]) -> None:
        pending = [each for parcel in parcels for each in parcel.pending]
        products = [self._produce(each) for each in pending]
        bodies = [product.body for product in products if isinstance(product, Product)]
        refs = iter(self._wait_out(lambda: self._blobs.put_payloads(bodies)) if bodies else [])
        outcomes = iter([_outcome(each, product, refs) for each, product in zip(pending, products, strict=True)])
        for parcel in parcels:
            self._report(parcel.report(tuple(next(outcomes) for _ in parcel.pending)))

    def _produce(self, pending: PendingOutcome) -> Product | RequestFailed | None:
        """What a request leaves behind. A save may fail, so it waits less long for the store than what took effect."""
        produce = pending.produce
        if produce is None or isinstance(produce, RequestFailed):
            return produce
        write = partial(write_patiently, produce, self._pause, SAVING_S)
        return attempt(write, what="storing the result", item=pending.item)

    def _wait_out(self, write: Callable[[], T]) -> T:
        """What is written here took effect, so reporting a failure would be untrue.

        When the trouble lasts, the process ends instead; another worker rebuilds the runs from the
        log, where these requests are still open.
        """
        return write_patiently(write, self._pause)

    def _pause(self, seconds: float) -> None:
        if self._is_abandoned:
            raise WorkerLost("nobody waits for this any more")
        self._sleep(seconds)


def _outcome(pending: PendingOutcome, product: Product | RequestFailed | None, refs: Iterator[str]) -> Outcome:
    outcome = Outcome(
        pending.request_id,
        num_tokens=pending.num_tokens,
        num_sampled_tokens=pending.num_sampled_tokens,
        num_cached_tokens=pending.num_cached_tokens,
        busy_s=pending.busy_s,
        wall_s=pending.wall_s,
    )
    if isinstance(product, RequestFailed):
        return replace(outcome, error=str(product), category=product.category)
    if product is None:
        return outcome
    return replace(outcome, result_ref=next(refs), checkpoint=product.checkpoint)
