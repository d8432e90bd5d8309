"""How busy the devices were lately, from what workers say with every heartbeat."""

from collections import deque

from openrl.rpc.messages import WorkerStats

WINDOW_S = 20.0
LEAST_S = 2.0
"""Of a worker's heartbeats, before they say anything."""
_DIGITS = 2


class DutyMeter:
    """Heartbeats of the last `WINDOW_S` by worker; times are monotonic."""

    def __init__(self) -> None:
        self._beats: dict[str, deque[tuple[float, float]]] = {}  # when, and device seconds since the worker's start

    def saw(self, worker_id: str, stats: WorkerStats, now: float) -> None:
        """A heartbeat. The step under way counts, so that a long one is not all counted when it ends."""
        beats = self._beats.setdefault(worker_id, deque())
        beats.append((now, stats.busy_train_s + stats.busy_sample_s + stats.step_age_s))
        while beats[0][0] < now - WINDOW_S:
            beats.popleft()

    def left(self, worker_id: str) -> None:
        """It is counted no more."""
        self._beats.pop(worker_id, None)

    def duty(self) -> float | None:
        """The mean over workers, 0 to 1; None while no worker was watched long enough."""
        duties = [
            min(1.0, max(0.0, (busy_s - busy_before_s) / (at - since)))
            for (since, busy_before_s), (at, busy_s) in ((beats[0], beats[-1]) for beats in self._beats.values())
            if at - since >= LEAST_S
        ]
        return round(sum(duties) / len(duties), _DIGITS) if duties else None
