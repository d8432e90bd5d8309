"""Counts the pieces of work that each tenant has in a lane."""

from collections import Counter
from collections.abc import Collection, Iterable


class TenantCount:
    """Tenants with at least one piece of work."""

    def __init__(self) -> None:
        self._pieces: Counter[str] = Counter()

    def enter(self, tenant_ids: Iterable[str]) -> None:
        """A piece of work came for each of these."""
        self._pieces.update(tenant_ids)

    def leave(self, tenant_ids: Iterable[str]) -> None:
        """Pieces that had come have ended."""
        for tenant_id in tenant_ids:
            self._pieces[tenant_id] -= 1
            if not self._pieces[tenant_id]:
                del self._pieces[tenant_id]

    def present(self) -> Collection[str]:
        """A view of those who have work."""
        return self._pieces.keys()
