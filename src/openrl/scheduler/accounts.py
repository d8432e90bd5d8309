"""What one tenant or project may start, and what it has used: a token bucket, requests at once, device time."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from openrl.store.quotas import NO_LIMITS, UNLIMITED, WHOLE_TENANT, Limits

BURST_S = 10.0
"""The bucket holds what comes in so long, unless `burst_tokens` says otherwise."""
DAY_S = 86400.0
_GATING = ("gpu_seconds_month", "gpu_seconds_day", "running_requests", "tokens_per_s")
_OPEN_LEVEL = -1e-6  # above rounding: a bucket that was waited for is open


@dataclass(frozen=True, slots=True)
class Moment:
    """When it is: on a clock that never jumps, by which waiting is measured, and in the calendar."""

    now: float
    utc: float  # seconds since the epoch
    day_ends_at: float = -math.inf  # in UTC
    month_ends_at: float = -math.inf

    def when(self, utc: float) -> float:
        """When that will be on the clock that never jumps."""
        return self.now + utc - self.utc


@dataclass(frozen=True, slots=True)
class Closed:
    """Why nothing more may start, and when that ends by itself."""

    reason: str
    until: float  # on the clock that never jumps; infinite: by an event only


@dataclass(slots=True)
class Account:
    """`owner` is a tenant's id and a project's, or WHOLE_TENANT."""

    owner: tuple[str, str]
    limits: Limits = NO_LIMITS
    level: float = 0.0  # tokens that may start; below zero, they are owed
    level_at: float = 0.0
    num_running: int = 0
    month_us: int = 0
    day_us: int = 0
    is_limited: bool = False  # whether there is anything to look at
    rate: float = math.inf  # tokens a second

    def set_limits(self, limits: Limits, now: float) -> None:
        """Another rate starts with a full bucket only where there was none."""
        if limits == self.limits:
            return
        had_rate = self.limits.tokens_per_s is not None
        self.refill(now)
        self.limits = limits
        self.rate = limits.bound("tokens_per_s")
        self.is_limited = any(limits.bound(name) != UNLIMITED for name in _GATING)
        self.level = min(self.level, self._burst()) if had_rate else self._burst()

    def refill(self, now: float) -> None:
        """What has come in since the last time."""
        if self.rate != math.inf:
            self.level = min(self.level + self.rate * max(now - self.level_at, 0.0), self._burst())
        self.level_at = max(now, self.level_at)

    def take(self, num_tokens: float, num_requests: int) -> None:
        """So many more run; negative: they end, and the tokens come back."""
        self.num_running += num_requests
        if self.rate != math.inf:
            self.level = min(self.level - num_tokens, self._burst())

    def is_used_up(self) -> bool:
        """Whether no device time is left."""
        if not self.is_limited:
            return False
        month, day = self.limits.bound("gpu_seconds_month"), self.limits.bound("gpu_seconds_day")
        return self.month_us >= month * 1e6 or self.day_us >= day * 1e6

    def closed(self, moment: Moment) -> Closed | None:
        """Why nothing may start at the moment; None: it may."""
        if not self.is_limited:
            return None
        if self.is_used_up():
            return self._closed_by_device_time(moment)
        running = self.limits.bound("running_requests")
        if self.num_running >= running:
            text = f"quota running_requests of {self._name()}: {self.num_running} of {running:.0f} run"
            return Closed(f"{text}; goes on when one of them ends", math.inf)
        return self._closed_by_rate(moment)

    def _closed_by_device_time(self, moment: Moment) -> Closed:
        name, used_us, until = "gpu_seconds_month", self.month_us, moment.month_ends_at
        if used_us < self.limits.bound(name) * 1e6:
            name, used_us, until = "gpu_seconds_day", self.day_us, moment.day_ends_at
        used = f"{used_us / 1e6:,.1f} of {self.limits.bound(name):,.1f} GPU-seconds are used"
        text = f"quota {name} of {self._name()}: {used}"
        return Closed(f"{text}; goes on at {_time(until)} or when the quota is raised", moment.when(until))

    def _closed_by_rate(self, moment: Moment) -> Closed | None:
        if self.rate == math.inf:
            return None
        self.refill(moment.now)
        if self.level >= _OPEN_LEVEL:
            return None
        wait_s = -self.level / self.rate
        text = f"quota tokens_per_s of {self._name()}: {self.rate:g} of {self.rate:g} tokens a second are used"
        return Closed(f"{text}; goes on at {_time(math.ceil(moment.utc + wait_s))}", moment.now + wait_s)

    def _burst(self) -> float:
        return BURST_S * self.rate if self.limits.burst_tokens is None else self.limits.burst_tokens

    def _name(self) -> str:
        project_id = self.owner[1]
        return "this tenant" if project_id == WHOLE_TENANT else f"project {project_id!r}"


def month_start(now: float) -> datetime:
    """When the calendar month of UTC began."""
    return datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def month_end(now: float) -> float:
    """When it ends."""
    return (month_start(now) + timedelta(days=32)).replace(day=1).timestamp()


def day_end(now: float) -> float:
    """When the day of UTC ends."""
    return (now // DAY_S + 1) * DAY_S


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
