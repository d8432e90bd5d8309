"""Makes tenants and API keys."""

import asyncio
import os
import secrets
import uuid
from pathlib import Path

from openrl.errors import NotFound
from openrl.gateway.auth import KEY_PREFIX, hash_key
from openrl.store.base import ApiKeyRow, Store, TenantRow

DEFAULT_TENANT = "default"


async def find_tenant(store: Store, name: str) -> TenantRow:
    """The tenant of that name; raises NotFound with the names there are."""
    tenants = await store.list_tenants()
    for tenant in tenants:
        if tenant.name == name:
            return tenant
    raise NotFound(
        f"there is no tenant {name!r}; tenants: {', '.join(sorted(each.name for each in tenants)) or 'none'}"
    )


async def have_tenant(store: Store, name: str, now: float) -> TenantRow:
    """The tenant of that name, made if it does not exist."""
    try:
        return await find_tenant(store, name)
    except NotFound:
        return await store.create_tenant(TenantRow(tenant_id=uuid.uuid4().hex, name=name, created_at=now))


async def create_key(store: Store, tenant: TenantRow, label: str, now: float) -> str:
    """A new API key in clear: this is the only time that it can be seen."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    await store.add_api_key(ApiKeyRow(hash_key(key), tenant.tenant_id, label, now))
    return key


async def have_first_key(store: Store, key_file: Path, now: float) -> str:
    """The key in `key_file`, made on the first start for the default tenant; only its owner may read the file."""
    found = await asyncio.to_thread(_read, key_file)
    if found is not None:
        return found
    key = await create_key(store, await have_tenant(store, DEFAULT_TENANT, now), "first start", now)
    await asyncio.to_thread(_write, key_file, key)
    return key


async def have_secret(secret_file: Path) -> bytes:
    """The secret in the file, made on the first start; only its owner may read the file."""
    found = await asyncio.to_thread(_read, secret_file)
    if found is None:
        found = secrets.token_hex(32)
        await asyncio.to_thread(_write, secret_file, found)
    return bytes.fromhex(found)


def _read(key_file: Path) -> str | None:
    return key_file.read_text().strip() if key_file.is_file() else None


def _write(key_file: Path, key: str) -> None:
    # Written aside and renamed: a start that is cut short leaves no empty key file behind.
    aside = key_file.with_suffix(".new")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(key + "\n")
    aside.rename(key_file)
