"""Tenants, users and keys in plain dicts: the part of `MemoryStore` that mirrors `sql_identities.py`."""

from collections.abc import Callable
from dataclasses import replace

from openrl.errors import InvalidRequest, NotFound, Unauthorized
from openrl.store import api_keys, tenants, users
from openrl.store.identities import Actor, ApiKeyRow, Identity, Role, SignIn, TenantRow, UserRow
from openrl.store.memory_quotas import MemoryQuotas
from openrl.store.memory_rows import found_row


class MemoryTenants(MemoryQuotas):
    """Base of `MemoryStore`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._tenants: dict[str, TenantRow] = {}
        self._users: dict[str, UserRow] = {}
        self._keys: dict[str, ApiKeyRow] = {}

    # -- credentials
    async def identity_of_key(self, key_hash: str, now: float) -> Identity:
        key = self._keys.get(key_hash)
        if key is None or key.revoked_at is not None:
            raise api_keys.not_valid()
        user = await self.get_user(key.tenant_id, key.user_id) if key.user_id else None
        identity = api_keys.identity_at(api_keys.known(key, user, self._is_disabled(key.tenant_id)), now)
        if key.last_used_at is None or key.last_used_at <= now - api_keys.USE_INTERVAL_S:
            self._keys[key_hash] = replace(key, last_used_at=now)
        return identity

    async def identity_of_user(self, tenant_id: str, user_id: str) -> Identity:
        user = self._users.get(user_id)
        if user is None or user.tenant_id != tenant_id:
            raise Unauthorized("the user of this token is no more")
        return users.identity_of(user, self._is_disabled(tenant_id))

    async def sign_in(self, sign_in: SignIn, now: float, *, may_create: bool = False) -> Identity:
        named = [row for row in await self.list_tenants() if row.name == sign_in.tenant_name]
        if not named and may_create:
            named = [await self.create_tenant(users.new_tenant(sign_in, now), users.new_actor(sign_in))]
        if not named:
            raise users.unknown(sign_in)
        tenant = named[0]
        user = await self._find_or_add(tenant, sign_in, now, may_create)
        return users.identity_of(user, tenant.disabled_at is not None, sign_in.role)

    async def _find_or_add(self, tenant: TenantRow, sign_in: SignIn, now: float, may_create: bool) -> UserRow:
        members = await self.list_users(tenant.tenant_id)
        by = users.new_actor(sign_in)
        for user in members:
            if user.subject == sign_in.subject:
                return user
        is_disabled = tenant.disabled_at is not None
        for user in members:
            if users.waits_for(user, sign_in):
                users.identity_of(user, is_disabled)  # who may not come in changes nothing
                enrolled = replace(user, subject=sign_in.subject)
                self._users[user.user_id] = enrolled
                self._record(tenant.tenant_id, users.user_entry(enrolled, "enrol", now, by))
                return enrolled
        if may_create:
            user = users.new_user(tenant, sign_in, now)
            self._check_new_user(user)
            users.identity_of(user, is_disabled)
            return await self.add_user(user, by)
        raise users.unknown(sign_in)

    # -- tenants
    async def create_tenant(self, tenant: TenantRow, by: Actor) -> TenantRow:
        if tenant.tenant_id not in self._tenants:
            self._record(tenant.tenant_id, tenants.tenant_entry(tenant, "create", tenant.created_at, by))
        return self._tenants.setdefault(tenant.tenant_id, tenant)

    async def get_tenant(self, tenant_id: str) -> TenantRow:
        return found_row(self._tenants.get(tenant_id), "tenant", tenant_id)

    async def list_tenants(self) -> tuple[TenantRow, ...]:
        return tuple(sorted(self._tenants.values(), key=lambda row: (row.created_at, row.tenant_id)))

    async def set_tenant_disabled(self, tenant_id: str, is_disabled: bool, now: float, by: Actor) -> TenantRow:
        tenant = await self.get_tenant(tenant_id)
        if is_disabled == (tenant.disabled_at is not None):
            return tenant
        self._tenants[tenant_id] = replace(tenant, disabled_at=now if is_disabled else None)
        self._record(tenant_id, tenants.tenant_entry(tenant, "disable" if is_disabled else "enable", now, by))
        return self._tenants[tenant_id]

    # -- users
    async def add_user(self, user: UserRow, by: Actor) -> UserRow:
        self._check_new_user(user)
        self._users[user.user_id] = user
        self._record(user.tenant_id, users.user_entry(user, "create", user.created_at, by))
        return user

    async def get_user(self, tenant_id: str, user_id: str) -> UserRow:
        user = self._users.get(user_id)
        if user is None or user.tenant_id != tenant_id:
            raise NotFound.of("user", user_id)
        return user

    async def list_users(self, tenant_id: str) -> tuple[UserRow, ...]:
        members = [row for row in self._users.values() if row.tenant_id == tenant_id]
        return tuple(sorted(members, key=lambda row: (row.created_at, row.user_id)))

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
        user = await self.get_user(tenant_id, user_id)
        for changed, action in users.user_changes(user, role, is_disabled, now):
            self._users[user_id] = changed
            self._record(tenant_id, users.user_entry(changed, action, now, by))
        return self._users[user_id]

    # -- keys
    async def add_api_key(self, key: ApiKeyRow, by: Actor) -> None:
        same = next((row for row in self._keys.values() if row.key_id == key.key_id), None)
        if same is not None:
            if (same.key_hash, same.tenant_id) != (key.key_hash, key.tenant_id):
                raise InvalidRequest("this API key belongs to another tenant")
            return
        api_keys.check_key(key, await self.get_user(key.tenant_id, key.user_id) if key.user_id else None)
        if key.project_id is not None:
            self._note_project(key.tenant_id, key.project_id, key.created_at)
        self._keys[key.key_hash] = key
        self._record(key.tenant_id, api_keys.key_entry(key, "create", key.created_at, by))

    async def list_api_keys(self, tenant_id: str) -> tuple[ApiKeyRow, ...]:
        wanted = [row for row in self._keys.values() if row.tenant_id == tenant_id]
        return tuple(sorted(wanted, key=lambda row: (row.created_at, row.key_hash)))

    async def rotate_api_key(
        self, tenant_id: str, key_id: str, new_hash: str, overlap_s: float, now: float, by: Actor
    ) -> ApiKeyRow:
        old, new = api_keys.rotated(await self._owned_key(tenant_id, key_id), new_hash, overlap_s, now)
        self._keys |= {old.key_hash: old, new.key_hash: new}
        self._record(tenant_id, api_keys.key_entry(old, "rotate", now, by))
        return new

    async def revoke_api_key(self, tenant_id: str, key_id: str, now: float, by: Actor) -> ApiKeyRow:
        key = await self._owned_key(tenant_id, key_id)
        if key.revoked_at is None:
            self._keys[key.key_hash] = replace(key, revoked_at=now)
            self._record(tenant_id, api_keys.key_entry(key, "revoke", now, by))
        return self._keys[key.key_hash]

    async def _owned_key(self, tenant_id: str, key_id: str) -> ApiKeyRow:
        owned = await self.list_api_keys(tenant_id)
        return found_row(next((row for row in owned if row.key_id == key_id), None), "API key", key_id)

    def _check_new_user(self, user: UserRow) -> None:
        users.check_named(user)
        for other in self._users.values():
            same = user.email == other.email != "" or user.subject == other.subject != ""
            if same and other.tenant_id == user.tenant_id:
                raise users.name_taken(user)

    def _is_disabled(self, tenant_id: str) -> bool:
        tenant = self._tenants.get(tenant_id)
        return tenant is not None and tenant.disabled_at is not None
