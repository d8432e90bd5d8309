"""Decides which tenants a step serves: all, or those alone that run less than their part of the batch.

A step with many sequences takes longer than one with few, so whoever floods the engine slows everybody who shares its
steps. A tenant with less than its part therefore gets steps of its own between the common ones, just as many as keep
its pace at 1/`max_slowdown` of what it would be without the others. Where common steps are hardly longer there are
none. Pure: durations are handed in.
"""

from collections.abc import Mapping

_SMOOTHING = 0.3


class StepTurns:
    """With common steps of F seconds and own steps of S, own steps get F·(1/m − S/F) / (1 − 1/m) seconds for each
    common one (m: max_slowdown). Then (1 common token + own tokens) / time is 1 / (m·S)."""

    def __init__(self, max_sequences: int, max_slowdown: float) -> None:
        self._max_sequences = max_sequences
        self._pace = 1.0 / max_slowdown
        self._light: frozenset[str] = frozenset()
        self._own_s: float | None = None  # of a step of the light tenants alone, smoothed
        self._owed_s = 0.0

    def choose(self, num_sequences: Mapping[str, int]) -> frozenset[str] | None:
        """The tenants to serve alone in the next step, or None for all, given what each of them runs and waits for."""
        part = min(sum(num_sequences.values()), self._max_sequences) / max(len(num_sequences), 1)
        light = frozenset(tenant for tenant, number in num_sequences.items() if number < part)
        if light != self._light:
            self._light, self._own_s, self._owed_s = light, None, 0.0
        return light if light and self._owed_s > 0.0 else None

    def record(self, served: frozenset[str] | None, seconds: float, *, is_decode: bool) -> None:
        """A step took this long; `is_decode`: it computed no prompts."""
        if served is None:
            own_s = self._own_s if self._own_s is not None else 0.0
            self._owed_s += max(0.0, (seconds * self._pace - own_s) / (1.0 - self._pace))
            return
        self._owed_s -= seconds
        if not is_decode:
            self._owed_s = max(0.0, self._owed_s)  # a long prompt is not paid for in later steps
        else:
            self._own_s = seconds if self._own_s is None else self._own_s + _SMOOTHING * (seconds - self._own_s)
