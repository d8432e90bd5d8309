"""What of the scheduler's state is counted rather than told: how much waits, and how much is not saved."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from openrl.protocol.runs import RequestKind
from openrl.store.base import RequestRow


@dataclass(slots=True)
class Unsaved:
    """Of the runs on one worker, what is in no snapshot."""

    age_s: float = 0.0  # of the oldest change
    replay_s: float = 0.0  # device time to do it again, of the run where that is most


@dataclass(frozen=True, slots=True)
class Figures:
    """At one moment."""

    num_workers: int = 0
    num_live_runs: int = 0  # that have something waiting, or are on a worker
    num_waiting: Counter[RequestKind] = field(default_factory=Counter[RequestKind])  # not sent to any worker
    oldest_waiting_s: dict[RequestKind, float] = field(default_factory=dict[RequestKind, float])
    unsaved: dict[str, Unsaved] = field(default_factory=dict[str, Unsaved])  # by worker

    def add_waiting(self, requests: Iterable[RequestRow], utc: float) -> None:
        """Count requests that wait."""
        for request in requests:
            self.num_waiting[request.kind] += 1
            age_s = max(utc - request.created_at, 0.0)
            self.oldest_waiting_s[request.kind] = max(self.oldest_waiting_s.get(request.kind, 0.0), age_s)
