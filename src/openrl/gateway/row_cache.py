"""Remembers rows that do not change, so that hot requests need no look-up."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Row = TypeVar("Row")


class RowCache(Generic[Row]):
    """Rows by (tenant id, row id): at most `capacity`, each for at most `max_age_s`."""

    def __init__(self, capacity: int, max_age_s: float, clock: Callable[[], float]) -> None:
        self._rows: OrderedDict[tuple[str, str], tuple[float, Row]] = OrderedDict()
        self._capacity = capacity
        self._max_age_s = max_age_s
        self._clock = clock

    async def get(self, tenant_id: str, row_id: str, load: Callable[[str, str], Awaitable[Row]]) -> Row:
        """The remembered row, or what `load` returns; errors of `load` are not remembered."""
        now = self._clock()
        known = self._rows.get((tenant_id, row_id))
        if known is not None and now - known[0] <= self._max_age_s:
            return known[1]
        row = await load(tenant_id, row_id)
        self._rows[tenant_id, row_id] = (now, row)
        self._rows.move_to_end((tenant_id, row_id))
        if len(self._rows) > self._capacity:
            self._rows.popitem(last=False)
        return row
