"""Tenants and their keys in plain dicts: the part of `MemoryStore` that mirrors `tenants.py`."""

from collections.abc import Callable
from dataclasses import replace

from openrl.errors import InvalidRequest, NotFound, Unauthorized
from openrl.store.base import ApiKeyRow, TenantRow
from openrl.store.memory_ledger import MemoryLedger


class MemoryTenants(MemoryLedger):
    """Base of `MemoryStore`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._tenants: dict[str, TenantRow] = {}
        self._keys: dict[str, ApiKeyRow] = {}

    async def create_tenant(self, tenant: TenantRow) -> TenantRow:
        return self._tenants.setdefault(tenant.tenant_id, tenant)

    async def list_tenants(self) -> tuple[TenantRow, ...]:
        return tuple(sorted(self._tenants.values(), key=lambda row: (row.created_at, row.tenant_id)))

    async def add_api_key(self, key: ApiKeyRow) -> None:
        if key.key_hash not in self._keys:
            self._note_key(key, "create", key.created_at)
        if self._keys.setdefault(key.key_hash, key).tenant_id != key.tenant_id:
            raise InvalidRequest("this API key belongs to another tenant")

    async def list_api_keys(self, tenant_id: str | None = None) -> tuple[ApiKeyRow, ...]:
        wanted = [row for row in self._keys.values() if tenant_id in (None, row.tenant_id)]
        return tuple(sorted(wanted, key=lambda row: (row.created_at, row.key_hash)))

    async def revoke_api_key(self, key_hash: str, now: float) -> None:
        key = self._keys.get(key_hash)
        if key is None:
            raise NotFound("this API key does not exist")
        if key.revoked_at is None:
            self._keys[key_hash] = replace(key, revoked_at=now)
            self._note_key(key, "revoke", now)

    async def tenant_of_key(self, key_hash: str) -> str:
        key = self._keys.get(key_hash)
        if key is None or key.revoked_at is not None:
            raise Unauthorized("the API key is not valid: unknown here, or revoked; `openrl keys` makes keys")
        return key.tenant_id
