"""Decides which snapshots sit in which slots of the sampler's adapter bank."""

from collections import OrderedDict


class AdapterSlots:
    """Slots by adapter key. A pinned key keeps its slot; the unpinned one unused for longest makes room.

    Pure bookkeeping: `take_pending` names the slots whose weights must be loaded before they are used.
    """

    def __init__(self, num_slots: int) -> None:
        self._blank = list(reversed(range(num_slots)))
        self._slot_of: OrderedDict[str, int] = OrderedDict()  # least recently pinned first
        self._pins: dict[str, int] = {}
        self._pending: dict[str, int] = {}

    def pin(self, key: str) -> bool:
        """Keep the adapter in a slot until `unpin`; False where all slots are pinned by others."""
        if key not in self._slot_of:
            slot = self._blank.pop() if self._blank else self._evict()
            if slot is None:
                return False
            self._slot_of[key] = slot
            self._pending[key] = slot
        self._slot_of.move_to_end(key)
        self._pins[key] = self._pins.get(key, 0) + 1
        return True

    def unpin(self, key: str) -> None:
        """Undo one `pin`."""
        self._pins[key] -= 1
        if not self._pins[key]:
            del self._pins[key]

    def slot(self, key: str) -> int:
        """The slot of a pinned adapter."""
        return self._slot_of[key]

    def take_pending(self) -> list[tuple[str, int]]:
        """Adapters given a slot since the last call; the caller loads them, or says `forget`."""
        pending = list(self._pending.items())
        self._pending.clear()
        return pending

    def forget(self, key: str) -> None:
        """Give up the slot of an adapter that could not be loaded and that nobody pins."""
        assert key not in self._pins, "an adapter in use cannot be forgotten"
        self._blank.append(self._slot_of.pop(key))
        self._pending.pop(key, None)

    def drop_unpinned(self) -> list[int]:
        """Forget the adapters that no sequence uses; returns their slots."""
        unused = [key for key in self._slot_of if key not in self._pins]
        slots = [self._slot_of.pop(key) for key in unused]
        for key in unused:
            self._pending.pop(key, None)
        self._blank += slots
        return slots

    @property
    def num_pinned(self) -> int:
        """Adapters that sequences use at the moment."""
        return len(self._pins)

    def _evict(self) -> int | None:
        key = next((key for key in self._slot_of if key not in self._pins), None)
        if key is None:
            return None
        self._pending.pop(key, None)
        return self._slot_of.pop(key)
