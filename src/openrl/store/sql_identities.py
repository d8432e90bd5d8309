"""The identities over SQL: whom a credential stands for is remembered for a few seconds."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from openrl.errors import InvalidRequest, Unavailable
from openrl.store import api_keys, tenants, users
from openrl.store.api_keys import USE_INTERVAL_S, KnownKey
from openrl.store.cluster import Signal
from openrl.store.identities import Actor, ApiKeyRow, Identity, Role, SignIn, TenantRow, UserRow
from openrl.store.keys import KeyCache, KeyUses
from openrl.store.sql_ledger import RunQuery

T = TypeVar("T")
Tell = Callable[[Signal], Awaitable[None]]
Submit = Callable[..., "asyncio.Future[Any]"]


class SqlIdentities:
    """`Identities` over the connections of a `SqlStore`; `tell` reaches the stores of other processes."""

    def __init__(self, read: RunQuery, change: RunQuery, submit: Submit, tell: Tell) -> None:
        self._read = read
        self._change = change
        self._submit = submit
        self._tell = tell
        self._keys: KeyCache[KnownKey] = KeyCache(time.monotonic)
        self._users: KeyCache[Identity] = KeyCache(time.monotonic)
        self._uses = KeyUses(USE_INTERVAL_S)

    def forget(self) -> None:
        """Look everything up again: this or another process has changed it."""
        self._keys.clear()
        self._users.clear()

    # -- credentials
    async def identity_of_key(self, key_hash: str, now: float) -> Identity:
        key = self._keys.get(key_hash)
        if key is None:
            version = self._keys.version
            key = await self._read(api_keys.known_key, key_hash)
            self._keys.put(key_hash, key, version)
        identity = api_keys.identity_at(key, now)
        if self._uses.is_due(key_hash, now):
            with suppress(Unavailable):  # what is being closed answers still
                self._submit(api_keys.note_use, key_hash, now).add_done_callback(_ignore)
        return identity

    async def identity_of_user(self, tenant_id: str, user_id: str) -> Identity:
        known = self._users.get((tenant_id, user_id))
        if known is None:
            version = self._users.version
            known = await self._read(users.identity_of_user, tenant_id, user_id)
            self._users.put((tenant_id, user_id), known, version)
        return known

    async def sign_in(self, sign_in: SignIn, now: float, *, may_create: bool = False) -> Identity:
        known = self._users.get(sign_in)
        if known is None:
            version = self._users.version
            known = await self._read(users.known_identity, sign_in)
            if known is None:
                if not may_create and not sign_in.is_email_verified:
                    raise users.unknown(sign_in)
                known = await self._enrol(sign_in, now, may_create)
            self._users.put(sign_in, known, version)
        return known

    async def _enrol(self, sign_in: SignIn, now: float, may_create: bool) -> Identity:
        try:
            return await self._change(users.enrol, sign_in, now, may_create)
        except InvalidRequest:  # another process has made the same rows at the same moment
            known = await self._read(users.known_identity, sign_in)
            if known is None:
                raise
            return known

    # -- tenants
    async def create_tenant(self, tenant: TenantRow, by: Actor) -> TenantRow:
        return await self._change(tenants.create_tenant, tenant, by)

    async def get_tenant(self, tenant_id: str) -> TenantRow:
        return await self._read(tenants.get_tenant, tenant_id)

    async def list_tenants(self) -> tuple[TenantRow, ...]:
        return await self._read(tenants.list_tenants)

    async def set_tenant_disabled(self, tenant_id: str, is_disabled: bool, now: float, by: Actor) -> TenantRow:
        return await self._change_and_tell(tenants.set_disabled, tenant_id, is_disabled, now, by)

    # -- users
    async def add_user(self, user: UserRow, by: Actor) -> UserRow:
        return await self._change(users.add_user, user, by)

    async def get_user(self, tenant_id: str, user_id: str) -> UserRow:
        return await self._read(users.get_user, tenant_id, user_id)

    async def list_users(self, tenant_id: str) -> tuple[UserRow, ...]:
        return await self._read(users.list_users, tenant_id)

    async def update_user(
        self,
        tenant_id: str,
        user_id: str,
        now: float,
        by: Actor,
        *,
        role: Role | None = None,
        is_disabled: bool | None = None,
    ) -> UserRow:
        return await self._change_and_tell(users.update_user, tenant_id, user_id, now, by, role, is_disabled)

    # -- keys
    async def add_api_key(self, key: ApiKeyRow, by: Actor) -> None:
        await self._change(api_keys.add_api_key, key, by)

    async def list_api_keys(self, tenant_id: str) -> tuple[ApiKeyRow, ...]:
        return await self._read(api_keys.list_api_keys, tenant_id)

    async def rotate_api_key(
        self, tenant_id: str, key_id: str, new_hash: str, overlap_s: float, now: float, by: Actor
    ) -> ApiKeyRow:
        return await self._change_and_tell(api_keys.rotate_api_key, tenant_id, key_id, new_hash, overlap_s, now, by)

    async def revoke_api_key(self, tenant_id: str, key_id: str, now: float, by: Actor) -> ApiKeyRow:
        return await self._change_and_tell(api_keys.revoke_api_key, tenant_id, key_id, now, by)

    async def _change_and_tell(self, query: Callable[..., T], tenant_id: str, *arguments: Any) -> T:
        """For what makes credentials void; one that is added was remembered by nobody."""
        changed = await self._change(query, tenant_id, *arguments)
        self.forget()
        await self._tell(Signal("keys_changed", tenant_id))
        return changed


def _ignore(noting: "asyncio.Future[Any]") -> None:
    """A use that could not be noted is no harm: the next one will be."""
    if not noting.cancelled():
        noting.exception()
