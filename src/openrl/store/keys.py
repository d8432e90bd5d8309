"""Remembers for a few seconds whom a credential stands for, and when its use was noted."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

MAX_KEYS = 10_000
MAX_AGE_S = 5.0  # how long a key that another process revoked still opens the door, should the signal be lost
T = TypeVar("T")


class KeyCache(Generic[T]):
    """Whom credentials stand for, by their hash or claims, bounded in number and age."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock  # monotonic seconds
        self._known: OrderedDict[Hashable, tuple[T, float]] = OrderedDict()
        self._version = 0

    @property
    def version(self) -> int:
        """Changes whenever entries become void: what was read before must not be put after."""
        return self._version

    def get(self, key: Hashable) -> T | None:
        """What was read lately, if it was."""
        found = self._known.get(key)
        if found is None or self._clock() - found[1] > MAX_AGE_S:
            return None
        return found[0]

    def put(self, key: Hashable, value: T, version: int) -> None:
        """Remember what was read while `version` was current."""
        if version != self._version:
            return
        self._known[key] = (value, self._clock())
        self._known.move_to_end(key)
        if len(self._known) > MAX_KEYS:
            self._known.popitem(last=False)

    def clear(self) -> None:
        """Forget everything: credentials have changed."""
        self._known.clear()
        self._version += 1


class KeyUses:
    """When the use of each key was last noted, so that it is noted once in a while only."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._noted: OrderedDict[str, float] = OrderedDict()

    def is_due(self, key_hash: str, now: float) -> bool:
        """Whether this use is to be noted; it counts as noted then."""
        last = self._noted.get(key_hash)
        if last is not None and now - last < self._interval_s:
            return False
        self._noted[key_hash] = now
        self._noted.move_to_end(key_hash)
        if len(self._noted) > MAX_KEYS:
            self._noted.popitem(last=False)
        return True
