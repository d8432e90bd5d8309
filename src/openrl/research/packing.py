"""How many attempts to run at once: as many as keep the devices busy and no more, by what the server tells of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

HOLD_S = 30.0
"""What leads to a change has to be so for this long after the one before."""
BACK_OFF_S = 600.0
"""After one too many, so many are not tried again for this long."""
LONGEST_GAP_S = 15.0
"""Between readings; after a longer one the time before it says nothing."""
ROOM = 0.85
"""Below this duty there is room for another attempt."""
FULL = 0.95
"""Above this duty a queue is one too many attempts, not a hitch."""
SHORT_WAIT_S = 2.0
LONG_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Reading:
    """What the server said, and what ran meanwhile."""

    at: float
    device_duty: float | None  # 0 to 1, of all tenants; None: it does not know
    queue_wait_s: float
    num_running: int
    is_settled: bool = True  # all that run have made themselves felt


@dataclass(frozen=True, slots=True)
class Packing:
    """So many at once, and why."""

    wanted: int = 1
    why: str = "one to begin with"
    changed_at: float = 0.0
    no_more_before: float = 0.0  # since one more was one too many


def repacked(packing: Packing, readings: Sequence[Reading], most: int, now: float) -> Packing:
    """One more, one fewer, or the same packing; `readings` are in order of time.

    One more takes `HOLD_S` of room in which all that were wanted ran; one fewer as long a queue on full devices.
    Between the two nothing changes, and what was too many is not tried again before `BACK_OFF_S`.
    """
    held = _held(packing, readings, now)
    if not held:
        return packing
    duties = [0.0 if each.device_duty is None else each.device_duty for each in held]
    duty, waits = sum(duties) / len(duties), [each.queue_wait_s for each in held]
    told = f"for {HOLD_S:.0f} s devices were {duty:.0%} busy"
    if packing.wanted > 1 and min(waits) >= LONG_WAIT_S and min(duties) >= FULL:
        why = f"{told} and the queue never under {min(waits):.1f} s"
        return Packing(packing.wanted - 1, why, now, no_more_before=now + BACK_OFF_S)
    may_grow = packing.wanted < most and now >= packing.no_more_before
    all_run = all(each.num_running >= packing.wanted and each.is_settled for each in held)
    if may_grow and all_run and max(duties) < ROOM and max(waits) <= SHORT_WAIT_S:
        return Packing(packing.wanted + 1, f"{told} and the queue never over {max(waits):.1f} s", now)
    return packing


def _held(packing: Packing, readings: Sequence[Reading], now: float) -> list[Reading]:
    """The readings of the last `HOLD_S`, if they cover it without a gap, all after the last change."""
    since = now - HOLD_S
    if packing.changed_at > since:
        return []
    known = [each for each in readings if packing.changed_at <= each.at <= now]
    before = max((each.at for each in known if each.at <= since), default=None)
    held = [each for each in known if before is not None and each.at >= before]
    times = [*(each.at for each in held), now]
    is_whole = all(later - earlier <= LONGEST_GAP_S for earlier, later in pairwise(times))
    return held if is_whole and all(each.device_duty is not None for each in held) else []
