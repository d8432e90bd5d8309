"""Divides the time in which a server works for us among the samples it has."""


class ServerMeter:
    """Seconds that one sample has cost since the start, had it been there all along; see worker.sampling_lane.

    What runs on the server is not seen from here: it counts as busy while it has something of ours.
    """

    def __init__(self) -> None:
        self._meter_s = 0.0
        self._num_samples = 0
        self._counted_to = 0.0

    def enter(self, num_samples: int, now: float) -> float:
        """So many samples come; where the meter stands."""
        self._count(now)
        self._num_samples += num_samples
        return self._meter_s

    def leave(self, num_samples: int, entered: float, now: float) -> float:
        """They go; what they have cost since `entered`."""
        self._count(now)
        self._num_samples -= num_samples
        return (self._meter_s - entered) * num_samples

    def _count(self, now: float) -> None:
        if self._num_samples:
            self._meter_s += (now - self._counted_to) / self._num_samples
        self._counted_to = now
