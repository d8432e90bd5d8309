"""Makes results durable and reports them, beside the compute thread."""

import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from openrl.errors import RequestFailed, Unavailable
from openrl.rpc.messages import Outcome, Report, SavedCheckpoint
from openrl.store.base import Blobs
from openrl.telemetry.logs import get_logger
from openrl.worker.attempts import attempt

_RETRY_WAITS_S = (0.1, 0.5, 1.0, 2.0, 5.0, *[10.0] * 60)  # ten minutes
T = TypeVar("T")
log = get_logger(__name__)


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

    def put(self, delivery: Delivery) -> None:
        """Hand over; returns at once. From any thread."""
        self._inbox.put(delivery)

    def close(self) -> None:
        """Let `run` return when everything handed over so far is reported."""
        self._inbox.put(None)

    def run(self) -> None:
        """The thread's loop; raises Unavailable when nothing can be stored for ten minutes."""
        is_open = True
        while is_open:
            group, is_open = self._take()
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
        products = [_produce(each) for each in pending]
        bodies = [product.body for product in products if isinstance(product, Product)]
        refs = iter(self._wait_out(lambda: self._blobs.put_payloads(bodies)) if bodies else [])
        outcomes = iter([_outcome(each, product, refs) for each, product in zip(pending, products, strict=True)])
        for parcel in parcels:
            self._report(parcel.report(tuple(next(outcomes) for _ in parcel.pending)))

    def _wait_out(self, write: Callable[[], T]) -> T:
        """Wait while the disk is full: what is written here took effect, so reporting a failure would be untrue.

        When the trouble lasts, the process ends instead; another worker rebuilds the runs from the
        log, where these requests are still open.
        """
        for wait_s in _RETRY_WAITS_S:
            try:
                return write()
            except (OSError, Unavailable) as error:
                log.warning("cannot write to the store; trying again", error=str(error), wait_s=wait_s)
                self._sleep(wait_s)
        return write()


def _produce(pending: PendingOutcome) -> Product | RequestFailed | None:
    if pending.produce is None or isinstance(pending.produce, RequestFailed):
        return pending.produce
    return attempt(pending.produce, what="storing the result")


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
