"""The wall clock as those should read it who delete what is past its time."""

from collections.abc import Callable


class PatientClock:
    """Never moves on by more than the time that has passed: where the wall clock jumps ahead, it stays behind for good.

    What was kept for an hour is then kept for an hour. Where the wall clock is set back, it is set back too.
    """

    def __init__(self, wall: Callable[[], float], steady: Callable[[], float]) -> None:
        self._wall = wall
        self._steady = steady
        self._read_at = steady()
        self._now = wall()

    def __call__(self) -> float:
        """Seconds since the epoch."""
        read_at = self._steady()
        self._now = min(self._wall(), self._now + read_at - self._read_at)
        self._read_at = read_at
        return self._now
