"""Remembers for a few seconds which tenant an API key belongs to."""

from collections import OrderedDict
from collections.abc import Callable

MAX_KEYS = 10_000
MAX_AGE_S = 5.0  # how long a key that another process revoked still opens the door


class KeyCache:
    """Tenants by key hash, bounded in number and age."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock  # monotonic seconds
        self._tenants: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._version = 0

    @property
    def version(self) -> int:
        """Changes whenever entries become void: what was read before must not be put after."""
        return self._version

    def get(self, key_hash: str) -> str | None:
        """The tenant if it was read lately."""
        found = self._tenants.get(key_hash)
        if found is None or self._clock() - found[1] > MAX_AGE_S:
            return None
        return found[0]

    def put(self, key_hash: str, tenant_id: str, version: int) -> None:
        """Remember what was read while `version` was current."""
        if version != self._version:
            return
        self._tenants[key_hash] = (tenant_id, self._clock())
        self._tenants.move_to_end(key_hash)
        if len(self._tenants) > MAX_KEYS:
            self._tenants.popitem(last=False)

    def clear(self) -> None:
        """Forget everything: keys have changed."""
        self._tenants.clear()
        self._version += 1
