"""Says how many tokens sequences decode before others may join them.

Pure: durations are handed in. A burst ends early when there is news. Else it lasts up to LONGEST times `burst_s`, but
no longer than `burst_s` after a request of it has ended, whose answer leaves when the burst is over. While others wait
for a place, which a sequence that ends within a burst leaves empty, bursts are short.
"""

from collections.abc import Sequence

MAX_STEPS = 64
LONGEST = 4.0
"""Times `burst_s`, while nobody waits and nothing ends: preparing a burst takes the host about 2 ms."""
WAITING_SHARE = 0.25
"""Part of `burst_s` while sequences wait."""
_SMOOTHING = 0.3
_MAX_RISE = 2.0


class BurstLength:
    """Fits steps into a time by a moving average of what one takes."""

    def __init__(self, burst_s: float, max_steps: int = MAX_STEPS) -> None:
        self._burst_s = burst_s
        self._max_steps = max_steps
        self._step_s = 0.0

    def num_steps(self, num_left: Sequence[int], max_s: float, *, are_waiting: bool) -> int:
        """Steps to do at once, within `max_s`; `num_left`: tokens that each sequence may still take.

        No more than the one with most left needs. While others wait, no more than the one with least left needs:
        its place is not left empty.
        """
        burst_s = min(self._burst_s * (WAITING_SHARE if are_waiting else LONGEST), max_s)
        most = min(self._max_steps, min(num_left) if are_waiting else max(num_left))
        if burst_s <= 0.0 or not self._step_s:
            return 1
        return max(1, most if burst_s >= self._step_s * most else int(burst_s / self._step_s))

    def is_over(self, waited_s: float) -> bool:
        """Whether an answer that has waited so long for the end of a burst has waited long enough."""
        return waited_s >= self._burst_s

    def record(self, num_steps: int, seconds: float) -> None:
        """So many steps of decoding took so long; an outlier, such as the first of its kind, counts little."""
        step_s = seconds / num_steps
        if self._step_s:
            step_s = self._step_s + _SMOOTHING * (min(step_s, _MAX_RISE * self._step_s) - self._step_s)
        self._step_s = step_s
