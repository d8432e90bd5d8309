"""Makes tenants and API keys."""

import asyncio
import os
import pwd
import secrets
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from openrl.errors import InvalidRequest, NotFound
from openrl.gateway.auth import hash_key, new_key
from openrl.store.base import Store
from openrl.store.identities import Actor, ApiKeyRow, Role, TenantRow, UserRow, lesser_role

DEFAULT_TENANT = "default"
_LEAST_SECRET_BYTES = 16


def operator() -> Actor:
    """Whoever runs this command, for the audit log."""
    with suppress(KeyError):  # a container's user may have no name
        return Actor(f"operator:{pwd.getpwuid(os.getuid()).pw_name}")
    return Actor(f"operator:{os.getuid()}")


async def find_tenant(store: Store, name: str) -> TenantRow:
    """The tenant of that name; raises NotFound with the names there are."""
    tenants = await store.identities.list_tenants()
    for tenant in tenants:
        if tenant.name == name:
            return tenant
    raise NotFound(
        f"there is no tenant {name!r}; tenants: {', '.join(sorted(each.name for each in tenants)) or 'none'}"
    )


async def wanted_tenants(store: Store, name: str | None) -> tuple[TenantRow, ...]:
    """The tenant of that name alone, or all of them."""
    return await store.identities.list_tenants() if name is None else (await find_tenant(store, name),)


async def have_tenant(store: Store, name: str, now: float) -> TenantRow:
    """The tenant of that name, made if it does not exist."""
    try:
        return await find_tenant(store, name)
    except NotFound:
        tenant = TenantRow(tenant_id=uuid.uuid4().hex, name=name, created_at=now)
        return await store.identities.create_tenant(tenant, operator())


async def find_user(store: Store, tenant: TenantRow, name: str) -> UserRow:
    """The tenant's user with this id, address or subject; raises NotFound."""
    for user in await store.identities.list_users(tenant.tenant_id):
        if name in (user.user_id, user.email, user.subject):
            return user
    raise NotFound(f"tenant {tenant.name!r} has no user {name!r}; `openrl admin users list` shows who there is")


@dataclass(frozen=True, slots=True)
class KeyOptions:
    """What a key may do, and for how long."""

    label: str = ""
    role: Role = "admin"
    user_id: str = ""
    project_id: str | None = None
    lifetime_s: float | None = None

    def of_user(self, user: UserRow, role: Role | None) -> "KeyOptions":
        """For this user; without a role of its own the key may do what the user may, bound to a project a bit less."""
        most = user.role if self.project_id is None else lesser_role(user.role, "member")
        return replace(self, user_id=user.user_id, role=role or most)


async def create_key(store: Store, tenant: TenantRow, options: KeyOptions, now: float) -> str:
    """A new API key in clear: this is the only time that it can be seen."""
    key = new_key()
    row = ApiKeyRow(
        key_hash=hash_key(key),
        tenant_id=tenant.tenant_id,
        label=options.label,
        created_at=now,
        role=options.role,
        user_id=options.user_id,
        project_id=options.project_id,
        expires_at=None if options.lifetime_s is None else now + options.lifetime_s,
    )
    await store.identities.add_api_key(row, operator())
    return key


async def have_first_key(store: Store, key_file: Path, now: float) -> str:
    """The key in `key_file`, made on the first start for the default tenant; only its owner may read the file."""
    found = await asyncio.to_thread(_read, key_file)
    if found is not None:
        return found
    key = await create_key(store, await have_tenant(store, DEFAULT_TENANT, now), KeyOptions("first start"), now)
    return await asyncio.to_thread(_write, key_file, key)


def have_secret(given: Path | None, default: Path) -> bytes:
    """The secret in the file that was given; else that in the default one, made on the first start."""
    if given is None:
        return _parse_secret(_read(default) or _write(default, secrets.token_hex(32)), default)
    found = _read(given)
    if found is None:
        raise InvalidRequest(f"the secret file {given} does not exist; make one: openssl rand -hex 32")
    return _parse_secret(found, given)


def _parse_secret(text: str, file: Path) -> bytes:
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) < _LEAST_SECRET_BYTES:
        raise InvalidRequest(f"the secret file {file} must hold at least {2 * _LEAST_SECRET_BYTES} hexadecimal digits")
    return secret


def _read(key_file: Path) -> str | None:
    return key_file.read_text().strip() if key_file.is_file() else None


def _write(key_file: Path, key: str) -> str:
    """What the file holds: the key, or that of another process that was first."""
    key_file.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and linked: a start that is cut short leaves no empty key file behind.
    aside = key_file.with_name(f"{key_file.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(key + "\n")
    with suppress(FileExistsError):
        key_file.hardlink_to(aside)
    aside.unlink()
    return key_file.read_text().strip()
