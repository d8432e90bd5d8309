"""Tells why a request waits: its quotas, or no worker that serves its model."""

from collections.abc import Callable

from openrl.catalog import Catalog
from openrl.gateway.quotas import QuotaBook
from openrl.gateway.row_cache import RowCache
from openrl.store.base import TenantStore
from openrl.store.cluster import Pause, SchedulerStatus

STATUS_AGE_S = 1.0


class Pauses:
    """Reads what the scheduler has published, a second old at most."""

    def __init__(self, store: TenantStore, catalog: Catalog, book: QuotaBook, clock: Callable[[], float]) -> None:
        self._store = store
        self._models = frozenset(model.name for model in catalog.all())
        self._book = book
        self._status: RowCache[SchedulerStatus] = RowCache(1, STATUS_AGE_S, clock)

    async def pause_of(self, tenant_id: str, request_id: str) -> Pause | None:
        """Why the tenant's request has not finished; None: it is just under way."""
        status = await self.status()
        if tenant_id in status.pauses:
            return status.pauses[tenant_id]
        is_partly_paused = any(key.startswith(f"{tenant_id}/") for key in status.pauses)
        if not is_partly_paused and self._models <= set(status.base_models):
            return None
        row = await self._store.get_request(tenant_id, request_id)
        side = "sample" if row.kind == "sample" else "train"
        if row.base_model and not status.serves(row.base_model, side):
            connected = f"{status.num_workers} worker{'' if status.num_workers == 1 else 's'} connected"
            reason = f"no worker serves base model {row.base_model!r} at the moment ({connected}); it waits for one"
            return Pause("paused_capacity", reason)
        project_id = await self._book.project_of(tenant_id, row.session_id)
        return status.pauses.get(f"{tenant_id}/{project_id}")

    async def status(self) -> SchedulerStatus:
        """What the scheduler has published."""
        return await self._status.get("", "", self._read_status)

    async def _read_status(self, _: str, __: str) -> SchedulerStatus:
        return await self._store.cluster.status()
