"""Decides whose training goes next and how long it may hold the device; pure, time comes in as an argument."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise

from openrl.worker.training_work import TrainingWork

MAX_CREDIT_S = 1.0
"""Device time that a tenant has left to others while it was away, as far as it counts when it comes back. Divided by
the number of others: so long they wait at most, however many come."""
SWITCH_S = 0.25
"""A pass gives way to another where it is so far ahead of it: passes of equals end one after the other."""
RECENT_S = 10.0
"""So long after its latest work a tenant is expected back."""
TURN_SHARE = 0.5
"""Of the latest pass of a tenant that is expected back: a turn of others takes no longer. With all of it bench.fairness
gave 1.9 and 2.1, with half 1.0, 1.5 and 1.6."""


class TrainingTurns:
    """Start-time fair queueing of tenants by device seconds, over their `tenant_shares` (1 if nothing).

    The tenant that has had least goes first; among equals what has waited longest.
    """

    def __init__(self, tenant_shares: Mapping[str, float] | None = None) -> None:
        self._shares = dict(tenant_shares or {})
        self._now = 0.0  # virtual time: how far those that were served had come
        self._times: dict[str, float] = {}
        self._present: set[str] = set()  # tenants with work here
        self._left_at: dict[str, float] = {}  # of those without, for a while
        self._pass_s: dict[str, float] = {}  # device time of each tenant's latest pass

    def set_shares(self, tenant_shares: Mapping[str, float]) -> None:
        """Charge tenants by these from here on."""
        self._shares = dict(tenant_shares)

    def arrive(self, tenants: Iterable[str]) -> None:
        """These had no work and have some."""
        for tenant in tenants:
            credit_s = MAX_CREDIT_S / max(len(self._present), 1)
            self._times[tenant] = max(self._times.get(tenant, self._now), self._now - credit_s)
            self._present.add(tenant)
            self._left_at.pop(tenant, None)

    def leave(self, tenants: Iterable[str], now: float) -> None:
        """These have no work any more."""
        left = dict.fromkeys(tenants, now)
        self._present -= left.keys()
        self._left_at.update(left)

    def choose(self, candidates: Iterable[TrainingWork], latest: TrainingWork | None) -> TrainingWork:
        """The next of the candidates; `latest` is the pass that had a turn last."""

        def key(work: TrainingWork) -> tuple[float, int]:
            wait_s = SWITCH_S if work.is_pass and work is not latest else 0.0
            return self._time_of(work) + wait_s, work.touched

        chosen = min(candidates, key=key)
        self._now = max(self._now, self._time_of(chosen))
        return chosen

    def charge(self, parts: Mapping[str, float], seconds: float) -> None:
        """A turn took so long; `parts`: see TrainingWork."""
        for tenant, part_s in _divided(parts, seconds):
            self._times[tenant] += part_s / self._shares.get(tenant, 1.0)

    def record_pass(self, parts: Mapping[str, float], seconds: float) -> None:
        """A pass took so much device time in all its turns."""
        self._pass_s.update(_divided(parts, seconds))

    def max_turn_s(self, now: float) -> float:
        """Who is expected back must not wait for a turn that is longer than what they come with."""
        self._left_at = {tenant: left for tenant, left in self._left_at.items() if now - left <= RECENT_S}
        return TURN_SHARE * min((self._pass_s.get(tenant, math.inf) for tenant in self._left_at), default=math.inf)

    def _time_of(self, work: TrainingWork) -> float:
        return min(self._times[tenant] for tenant in work.parts)


def divide_exactly(seconds: float, parts: Sequence[float]) -> list[float]:
    """Time in proportion to the parts (evenly where they are 0), in whole microseconds that add up to all of it."""
    weights = parts if sum(parts) else [1.0] * len(parts)
    ends = [round(seconds * 1e6 * end / sum(weights)) for end in accumulate(weights)]
    return [(end - start) / 1e6 for start, end in pairwise([0, *ends])]


def _divided(parts: Mapping[str, float], seconds: float) -> Iterable[tuple[str, float]]:
    total = sum(parts.values())
    return [(tenant, seconds * part / total) for tenant, part in parts.items()]
