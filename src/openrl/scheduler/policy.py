"""Decides who goes next, what shares a pass and which worker takes it; no requests are held here.

Tenants share a resource by start-time fair queueing: each has a virtual time that grows with the
work it was given, and the one that is furthest behind goes next. A tenant that was away starts at
the virtual time of what is being served, so it neither pays for its absence nor profits from it.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from openrl.protocol.runs import RequestKind
from openrl.rpc.messages import WorkerReady

MAX_EXECUTES = 2
"""Executes a worker holds: one runs, the next is ready, so that the device never waits for us."""
MAX_NEWCOMER_EXECUTES = 2
"""More of them, of tenants that have nothing there: a gradient, and the step after it or what others came with."""
MAX_LOSSES = 3
"""A request that was on a worker at this many worker losses is failed."""
MIN_COST_TOKENS = 256
"""Least a request costs its tenant: steps and saves take device time without having tokens."""
MAX_MISFITS = 8
"""Runs looked past when filling a pass; bounds the work of one decision."""
RIDING_KINDS: frozenset[RequestKind] = frozenset(("forward_backward", "forward"))
"""Kinds of which several consecutive requests of one run may share a pass."""


class FairShare:
    """The virtual times of the tenants that share one resource; `shares` weighs some of them, the others weigh 1."""

    def __init__(self, shares: Mapping[str, float] | None = None) -> None:
        self._shares = {} if shares is None else shares  # not a copy: they may change
        self._now = 0.0
        self._times: dict[str, float] = {}

    def time_of(self, tenant_id: str) -> float:
        """The tenant's virtual time; it never falls."""
        return self._times.get(tenant_id, 0.0)

    def arrive(self, tenant_id: str) -> None:
        """The tenant has work: it is at least at the virtual time of what is being served."""
        self._times[tenant_id] = max(self.time_of(tenant_id), self._now)

    def serve(self, tenant_id: str) -> None:
        """The tenant is the one furthest behind and is served: virtual time moves up to it."""
        self._now = max(self._now, self.time_of(tenant_id))

    def charge(self, tenant_id: str, num_tokens: int) -> None:
        """The tenant was given this much work."""
        self._times[tenant_id] = self.time_of(tenant_id) + self.cost_of(tenant_id, num_tokens)

    def cost_of(self, tenant_id: str, num_tokens: int) -> float:
        """By how much that much work moves the tenant's virtual time."""
        return max(num_tokens, MIN_COST_TOKENS) / self._shares.get(tenant_id, 1.0)


class FairQueue:
    """Waiting items: the tenant furthest behind first, within a tenant the lowest order first.

    `push`, `discard`, `peek` and `pop` take O(log n) amortised. Removed items stay in the heaps
    until they surface.
    """

    def __init__(self, share: FairShare) -> None:
        self.share = share
        self._entries: dict[str, tuple[str, int]] = {}
        self._by_tenant: dict[str, list[tuple[int, str]]] = {}
        self._num_items: Counter[str] = Counter()  # by tenant
        self._tenants: list[tuple[float, str]] = []  # one entry per key of _by_tenant; its time may lag

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, tenant_id: str, order: int, item: str) -> None:
        """Add an item, or change its order."""
        self.discard(item)
        self._entries[item] = (tenant_id, order)
        self._num_items[tenant_id] += 1
        self.share.arrive(tenant_id)
        if tenant_id not in self._by_tenant:
            self._by_tenant[tenant_id] = []
            heapq.heappush(self._tenants, (self.share.time_of(tenant_id), tenant_id))
        heapq.heappush(self._by_tenant[tenant_id], (order, item))

    def discard(self, item: str) -> None:
        """Remove an item if it is here."""
        entry = self._entries.pop(item, None)
        if entry is not None:
            self._num_items[entry[0]] -= 1
            if not self._num_items[entry[0]]:
                del self._num_items[entry[0]]

    def num_items(self, tenant_id: str) -> int:
        """How many items a tenant has here."""
        return self._num_items[tenant_id]

    def peek(self) -> tuple[float, int, str] | None:
        """Virtual time of its tenant, order and name of the next item."""
        while self._tenants:
            time, tenant_id = self._tenants[0]
            items = self._by_tenant[tenant_id]
            if not self._first(tenant_id, items)[1]:
                heapq.heappop(self._tenants)
                del self._by_tenant[tenant_id]
            elif time < self.share.time_of(tenant_id):
                heapq.heapreplace(self._tenants, (self.share.time_of(tenant_id), tenant_id))
            else:
                return time, *items[0]
        return None

    def heads(self) -> list[str]:
        """The next item of each tenant, the tenant furthest behind first."""
        alive = [
            (self.share.time_of(tenant_id), order, item)
            for tenant_id, items in self._by_tenant.items()
            for order, item in [self._first(tenant_id, items)]
            if item
        ]
        return [item for _, _, item in sorted(alive)]

    def pop(self) -> str | None:
        """Remove and return the next item."""
        if (head := self.peek()) is None:
            return None
        self.discard(head[2])
        return head[2]

    def _first(self, tenant_id: str, items: list[tuple[int, str]]) -> tuple[int, str]:
        """A tenant's next item and its order, (0, "") if it has none; drops what was removed."""
        while items and self._entries.get(items[0][1]) != (tenant_id, items[0][0]):
            heapq.heappop(items)
        return items[0] if items else (0, "")


@dataclass(slots=True)
class PassBudget:
    """How much more one Execute may hold. Its first request always fits."""

    kind: RequestKind
    max_tokens: int
    num_items: int = 0
    num_tokens: int = 0

    def fits(self, num_tokens: int) -> bool:
        """Whether a request of so many tokens can come along."""
        if self.num_items == 0:
            return True
        if self.kind in RIDING_KINDS and self.num_tokens + num_tokens > self.max_tokens:
            return False
        return self.num_items < max_items(self.kind)

    def add(self, num_tokens: int) -> None:
        """The request comes along."""
        self.num_items += 1
        self.num_tokens += num_tokens

    def is_full(self) -> bool:
        """Whether looking for more is pointless."""
        return not self.fits(1)


def max_items(kind: RequestKind) -> int:
    """Requests of a kind in one Execute; slow kinds go in small groups so that others are not held up."""
    match kind:
        case "forward_backward" | "forward":
            return 1024
        case "optim_step":
            return 64
        case _:
            return 4


@dataclass(frozen=True, slots=True)
class SampleLoad:
    """A worker's occupancy as placement of samples sees it."""

    worker_id: str
    num_sequences: int
    max_sequences: int
    has_adapter: bool
    num_of_tenant: int = 0  # of these, those of the tenant that asks
    num_tenants: int = 1  # it included


def has_room(load: SampleLoad, wanted: int) -> bool:
    """Whether a sample request may go to a worker: up to twice what is decoded at once.

    A request that is larger than that goes as soon as the worker would otherwise decode less than it can.
    """
    is_open = load.num_sequences + wanted <= 2 * load.max_sequences or load.num_sequences < load.max_sequences
    return is_open or has_part(load, wanted)


def has_part(load: SampleLoad, wanted: int) -> bool:
    """Whether a tenant asks for no more than its equal part of what is decoded at once, or for its only request.

    It may always have that, however full the worker is: the engine makes way for it.
    """
    return is_part(load.num_of_tenant, wanted, load.num_tenants, load.max_sequences)


def is_part(num_of_tenant: int, wanted: int, num_tenants: int, max_sequences: int) -> bool:
    """See has_part."""
    return num_of_tenant == 0 or (num_of_tenant + wanted) * num_tenants <= max_sequences


def may_overtake(load: SampleLoad, wanted: int, num_waiting: int, lead: float) -> bool:
    """Whether a tenant that is not the furthest behind gets its part of a full worker; `lead`: by so many requests.

    Always if that is all it has waiting. A tenant with more waits when it is its part ahead: the engine serves faster
    who has little there, and would so bring it more and more of what others wait for as long.
    """
    is_all = load.num_of_tenant + num_waiting == 1
    has_all = (load.num_of_tenant + wanted * num_waiting) * load.num_tenants <= load.max_sequences
    is_within = lead <= 0 or wanted * (lead + 1) * load.num_tenants <= load.max_sequences
    return has_part(load, wanted) and (is_all or has_all or is_within)


def choose_sample_worker(
    loads: Iterable[SampleLoad], wanted: int, is_open: Callable[[SampleLoad, int], bool] = has_room
) -> str | None:
    """The worker for a sample request: one that has the adapter if it is open to the request, else the emptiest."""
    open_loads = [load for load in loads if is_open(load, wanted)]
    best = min(
        open_loads,
        key=lambda load: (not load.has_adapter, load.num_sequences / load.max_sequences, load.worker_id),
        default=None,
    )
    return None if best is None else best.worker_id


def choose_run_worker(workers: Iterable[tuple[WorkerReady, str, int]], base_model: str) -> str | None:
    """The worker with the fewest runs among those that serve the model; entries are (ready, id, runs)."""
    loads = [(num_runs, worker_id) for ready, worker_id, num_runs in workers if base_model in ready.base_models]
    return min(loads)[1] if loads else None
