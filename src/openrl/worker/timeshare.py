"""Decides what the device does next: a training slice of bounded length, or a sampling step.

Pure: time comes in as arguments. The compute thread and `bench.sim` run the same objects.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

Side = Literal["training", "sampling"]

MAX_SLICE_S = 0.1
"""Default of `worker.max_slice_s`."""
MAX_TRAINING_LAG_S = 1.0
"""Default of `worker.max_training_lag_s`."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Who has the device next; a training slice should end within `max_s`."""

    side: Side
    max_s: float = math.inf


class TimeShare:
    """Divides device time between training and sampling while both have work; all of it for one that is alone.

    *Shares.* Every tenant weighs what `tenant_shares` says, 1 if nothing; one with work on both sides weighs half
    on each. Sampling goes first until training is `max_training_lag_s` behind its share of the time in which both
    had work; from there on each has its share. To finish samples first keeps jobs from falling into step, where all
    sample, all train and all wait at once (docs/performance.md).

    *Delay.* While sequences decode, the training slices between two sampling steps take about `max_slice_s`
    together, whatever the weights: training that the bound holds back from its share is not owed the rest.

    *Absence.* A side that is away earns nothing; what one is ahead of the other fades as fast as time passes, so a
    client that leaves for the length of a round trip does not start anew.
    """

    def __init__(
        self,
        max_slice_s: float = MAX_SLICE_S,
        max_training_lag_s: float = MAX_TRAINING_LAG_S,
        tenant_shares: Mapping[str, float] | None = None,
    ) -> None:
        self._max_slice_s = max_slice_s
        self._max_lag_s = max_training_lag_s
        self._tenant_shares = dict(tenant_shares or {})
        self._lead_s = 0.0  # device time that training has had beyond its share
        self._held_s = 0.0  # training since the last sampling step, while sampling waited
        self._share = 0.5  # of training
        self._decided_at = 0.0
        self._both_work = False
        self._is_charged = False  # whether the turn counts against its side

    def set_shares(self, tenant_shares: Mapping[str, float]) -> None:
        """Weigh tenants so from here on."""
        self._tenant_shares = dict(tenant_shares)

    def decide(self, now: float, training: Collection[str], sampling: Collection[str]) -> Turn | None:
        """Who goes next; the arguments are the tenants with work on each side. None where there is no work."""
        if not self._both_work:
            self._fade(now - self._decided_at)
        self._decided_at = now
        self._both_work = bool(training and sampling)
        self._is_charged = self._both_work
        if not self._both_work:
            self._held_s = 0.0
            if training:
                return Turn("training")
            return Turn("sampling") if sampling else None
        self._share = self._training_share(training, sampling)
        if self._lead_s >= -self._max_lag_s:
            return Turn("sampling")
        room_s = self._max_slice_s - self._held_s
        # A slice shorter than half the bound would pay more for its start than it is worth.
        self._is_charged = room_s >= self._max_slice_s / 2
        return Turn("training", room_s) if self._is_charged else Turn("sampling")

    def record(self, side: Side, seconds: float) -> None:
        """Charge the device time of the turn that was decided last."""
        if side == "sampling":
            self._held_s = 0.0
        elif self._both_work:
            self._held_s += seconds
        if self._is_charged:
            self._lead_s += seconds * (1 - self._share) if side == "training" else -seconds * self._share

    def _fade(self, seconds: float) -> None:
        self._lead_s = math.copysign(max(abs(self._lead_s) - seconds, 0.0), self._lead_s)

    def _training_share(self, training: Collection[str], sampling: Collection[str]) -> float:
        both = set(training) & set(sampling)
        weight = self._weight(training, both)
        return weight / (weight + self._weight(sampling, both))

    def _weight(self, tenants: Collection[str], both: Collection[str]) -> float:
        return sum(self._tenant_shares.get(each, 1.0) / (2 if each in both else 1) for each in tenants)


_KEEP = 0.7
_MAX_RISE = 2.0


class Pace:
    """How much work of one kind fits into a time, from what it took so far.

    A moving average of seconds per unit. A measurement counts at most as _MAX_RISE times the average: one that waited
    for a compiler or a disk says little about the next.
    """

    def __init__(self, least: int = 1, grain: int = 1) -> None:
        self._least = least  # units below which dividing costs more than it gives
        self._grain = grain  # sizes are multiples of it, so that an engine meets few of them
        self._unit_s: float | None = None

    def record(self, units: int, seconds: float) -> None:
        """So much work took so long."""
        if units <= 0:
            return
        unit_s = seconds / units
        if not self._unit_s:
            self._unit_s = unit_s
        else:
            self._unit_s = _KEEP * self._unit_s + (1 - _KEEP) * min(unit_s, _MAX_RISE * self._unit_s)

    def fit(self, max_s: float, most: int) -> int:
        """Units to do next: at most `most`, and as many as should end within `max_s`, but no fewer than the least."""
        unit_s = self._unit_s
        if math.isinf(max_s) or unit_s == 0.0:
            return most
        units = 0 if unit_s is None else int(min(max(max_s, 0.0) / unit_s, most))
        return min(max(units // self._grain * self._grain, self._least), most)
