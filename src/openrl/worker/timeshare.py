"""Decides what the device does next: a training slice of bounded length, or a sampling step.

Pure: device seconds come in as arguments. The compute thread and `bench.sim` run the same objects.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

Side = Literal["training", "sampling"]

MAX_SLICE_S = 0.1
"""Default of `worker.max_slice_s`."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Who has the device next; a training slice should end within `max_s`."""

    side: Side
    max_s: float = math.inf


class TimeShare:
    """Divides device time between training and sampling while both have work; all of it for one that is alone.

    *Shares.* Every tenant weighs what `tenant_shares` says, 1 if nothing; one with work on both sides weighs half
    on each. The side that has used less time for its weight goes next. A side that was idle has no claim to time
    it did not use, so the one that was there pays at most for the turn that is under way.

    *Delay.* While sequences decode, the training slices between two sampling steps take about `max_slice_s`
    together, whatever the weights: training that the bound holds back from its share is not owed the rest.
    """

    def __init__(self, max_slice_s: float = MAX_SLICE_S, tenant_shares: Mapping[str, float] | None = None) -> None:
        self._max_slice_s = max_slice_s
        self._tenant_shares = dict(tenant_shares or {})
        self._lead_s = 0.0  # by how much training is ahead, in seconds for a weight of one
        self._held_s = 0.0  # training since the last sampling step, while sampling waited
        self._weights = {"training": 1.0, "sampling": 1.0}
        self._is_owed = True  # whether the turn counts against its side

    def decide(self, training: Collection[str], sampling: Collection[str]) -> Turn | None:
        """Who goes next; the arguments are the tenants with work on each side. None where there is no work."""
        if not (training and sampling):
            self._lead_s = self._held_s = 0.0
            self._is_owed = False
            if training:
                return Turn("training")
            return Turn("sampling") if sampling else None
        self._weights = self._weigh(training, sampling)
        room_s = self._max_slice_s - self._held_s
        # A slice shorter than half the bound would pay more for its start than it is worth.
        self._is_owed = self._lead_s >= 0 or room_s >= self._max_slice_s / 2
        if self._lead_s < 0 and self._is_owed:
            return Turn("training", room_s)
        return Turn("sampling")

    def record(self, side: Side, seconds: float) -> None:
        """Charge the device time of the turn that was decided last."""
        if side == "sampling":
            self._held_s = 0.0
        elif self._is_owed:
            self._held_s += seconds
        if self._is_owed:
            weighted_s = seconds / self._weights[side]
            self._lead_s += weighted_s if side == "training" else -weighted_s

    def _weigh(self, training: Collection[str], sampling: Collection[str]) -> dict[Side, float]:
        both = set(training) & set(sampling)
        return {"training": self._weight(training, both), "sampling": self._weight(sampling, both)}

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
