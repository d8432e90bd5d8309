"""Quotas over SQL."""

from collections.abc import Callable, Mapping

from openrl.store import quota_rows
from openrl.store.identities import Actor
from openrl.store.quotas import DeviceUse, Holding, QuotaRow
from openrl.store.sql_ledger import RunQuery


class SqlQuotas:
    """`Quotas` over the connections of a `SqlStore`."""

    def __init__(self, read: RunQuery, change: RunQuery, clock: Callable[[], float]) -> None:
        self._read = read
        self._change = change
        self._clock = clock

    async def list_quotas(self) -> tuple[QuotaRow, ...]:
        return await self._read(quota_rows.all_quotas)

    async def quotas_of(self, tenant_id: str) -> tuple[QuotaRow, ...]:
        return await self._read(quota_rows.of_tenant, tenant_id)

    async def put_quota(self, row: QuotaRow, by: Actor) -> None:
        await self._change(quota_rows.put, row, by)

    async def clear_quota(self, tenant_id: str, project_id: str, now: float, by: Actor) -> None:
        await self._change(quota_rows.clear, tenant_id, project_id, now, by)

    async def holdings(self, tenant_id: str) -> tuple[Holding, ...]:
        return await self._read(quota_rows.holdings, tenant_id, self._clock())

    async def num_queued(self, tenant_id: str) -> Mapping[str, int]:
        return await self._read(quota_rows.num_queued, tenant_id)

    async def has_later(self, tenant_id: str, run_id: str, seq_id: int) -> bool:
        return await self._read(quota_rows.has_later, tenant_id, run_id, seq_id)

    async def device_use(self, first_hour: int) -> tuple[DeviceUse, ...]:
        return await self._read(quota_rows.device_use, first_hour)
