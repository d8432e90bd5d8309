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
        self._measured: frozenset[str] = frozenset()  # whose own steps `_own_s` is about
        self._own_s = 0.0
        self._common_s = 0.0
        self._owed_s = 0.0

    def choose(self, num_sequences: Mapping[str, int]) -> frozenset[str] | None:
        """The tenants to serve alone in the next step, or None for all, given what each of them runs and waits for."""
        part = min(sum(num_sequences.values()), self._max_sequences) / max(len(num_sequences), 1)
        light = frozenset(tenant for tenant, number in num_sequences.items() if number < part)
        if light != self._light:
            self._light = light
            if light and light != self._measured:
                self._measured, self._own_s = light, 0.0
            self._owed_s = self._due(self._common_s)  # who comes in the middle of a common step has waited for it
        return light if light and self._owed_s > 0.0 else None

    @property
    def owed_s(self) -> float:
        """Seconds of own steps that the light tenants have coming."""
        return self._owed_s

    def record(self, served: frozenset[str] | None, seconds: float, *, is_decode: bool, num_steps: int = 1) -> None:
        """So many steps took this long together; `is_decode`: they computed no prompts."""
        step_s = seconds / num_steps
        if served is None:
            self._common_s = _smoothed(self._common_s, step_s)
            self._owed_s += num_steps * self._due(step_s)
            return
        self._owed_s -= seconds
        if is_decode:
            self._own_s = _smoothed(self._own_s, step_s)
        else:
            self._owed_s = max(0.0, self._owed_s)  # a long prompt is not paid for in later steps

    def _due(self, common_s: float) -> float:
        """Seconds of own steps for a common step of this length."""
        return max(0.0, (common_s * self._pace - self._own_s) / (1.0 - self._pace))


def _smoothed(average_s: float, seconds: float) -> float:
    return average_s + _SMOOTHING * (seconds - average_s) if average_s else seconds
