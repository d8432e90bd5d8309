"""Who may read which checkpoint, in plain dicts: the part of `MemoryStore` that mirrors `shares.py`."""

from collections.abc import Callable
from dataclasses import replace

from openrl.protocol.runs import CheckpointKind
from openrl.store.base import CheckpointRow, Page
from openrl.store.identities import Actor, ShareRow
from openrl.store.memory_rows import found_row, insert_row
from openrl.store.memory_tenants import MemoryTenants
from openrl.store.shares import check_is_for, not_valid, share_entry


class MemoryShares(MemoryTenants):
    """Base of `MemoryStore`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._shares: dict[str, ShareRow] = {}

    async def get_checkpoint(self, tenant_id: str, run_id: str, kind: CheckpointKind, name: str) -> CheckpointRow:
        return self._checkpoints.get(tenant_id, run_id, kind, name)

    async def list_checkpoints(
        self, tenant_id: str, limit: int, offset: int, run_id: str | None = None, project_id: str | None = None
    ) -> Page[CheckpointRow]:
        def is_wanted(row: CheckpointRow) -> bool:
            return run_id in (None, row.run_id) and project_id in (None, self._project_of_run(row.run_id))

        return self._checkpoints.list(tenant_id, limit, offset, is_wanted)

    async def create_share(self, share: ShareRow, by: Actor) -> ShareRow:
        self._checkpoints.own(share.tenant_id, share.run_id, share.kind, share.name)
        insert_row(self._shares, share.token_hash, share)
        self._record(share.tenant_id, share_entry(share, "create", share.created_at, by))
        return share

    async def list_shares(self, tenant_id: str, project_id: str | None = None) -> tuple[ShareRow, ...]:
        owned = [row for row in self._shares.values() if row.tenant_id == tenant_id]
        owned = [row for row in owned if project_id in (None, self._project_of_run(row.run_id))]
        return tuple(sorted(owned, key=lambda row: (-row.created_at, row.token_hash)))

    async def revoke_share(self, tenant_id: str, share_id: str, now: float, by: Actor) -> ShareRow:
        owned = await self.list_shares(tenant_id)
        share = found_row(next((row for row in owned if row.share_id == share_id), None), "share", share_id)
        if share.revoked_at is None:
            share = replace(share, revoked_at=now)
            self._shares[share.token_hash] = share
            self._record(tenant_id, share_entry(share, "revoke", now, by))
        return share

    async def shared_checkpoint(self, token_hash: str, run_id: str, kind: CheckpointKind, name: str) -> CheckpointRow:
        share = check_is_for(self._shares.get(token_hash), run_id, kind, name, self._clock())
        if self._is_disabled(share.tenant_id):
            raise not_valid()
        return self._checkpoints.own(share.tenant_id, run_id, kind, name)
