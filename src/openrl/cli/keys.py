"""`openrl keys`: makes, lists and revokes API keys."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from openrl.cli.credentials import DEFAULT_TENANT, create_key, find_tenant, have_tenant
from openrl.cli.data_dir import open_store
from openrl.cli.options import ConfigFile, DataDirOption, JsonOption, print_json
from openrl.cli.tables import print_table
from openrl.config import Config, load_config
from openrl.errors import InvalidRequest
from openrl.gateway.auth import hash_key
from openrl.store.base import ApiKeyRow, Store

keys_app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")
_MIN_PREFIX = 6


@keys_app.command("create")
def create(
    tenant: Annotated[str, typer.Option(help="Who the key is for; made if there is no such tenant.")] = DEFAULT_TENANT,
    label: Annotated[str, typer.Option(help="A note to tell keys apart.")] = "",
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
) -> None:
    """Make a key and print it; it cannot be shown again."""
    typer.echo(asyncio.run(_create(load_config(config_file, data_dir=data_dir), tenant, label)))


@keys_app.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's keys.")] = None,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
) -> None:
    """Show the keys: never themselves, only their hashes."""
    rows = asyncio.run(_list(load_config(config_file, data_dir=data_dir), tenant))
    if as_json:
        print_json(rows)
        return
    names = ("hash", "tenant", "label", "created_at", "revoked_at")
    print_table(names, ([row[name] or "" for name in names] for row in rows))


@keys_app.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(help="The key itself, or the beginning of its hash.")],
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
) -> None:
    """Make a key invalid for good."""
    revoked = asyncio.run(_revoke(load_config(config_file, data_dir=data_dir), key))
    typer.echo(f"revoked {revoked.key_hash[:12]} ({revoked.label or 'no label'})")


async def _create(config: Config, tenant_name: str, label: str) -> str:
    async with open_store(config) as (store, _):
        now = time.time()
        return await create_key(store, await have_tenant(store, tenant_name, now), label, now)


async def _list(config: Config, tenant_name: str | None) -> list[dict[str, str | None]]:
    async with open_store(config) as (store, _):
        only = None if tenant_name is None else (await find_tenant(store, tenant_name)).tenant_id
        names = {tenant.tenant_id: tenant.name for tenant in await store.list_tenants()}
        return [_row(key, names) for key in await store.list_api_keys(only)]


async def _revoke(config: Config, key: str) -> ApiKeyRow:
    async with open_store(config) as (store, _):
        found = await _find_key(store, key)
        await store.revoke_api_key(found.key_hash, time.time())
        return found


async def _find_key(store: Store, key: str) -> ApiKeyRow:
    prefix = hash_key(key) if key.startswith("tml-") else key
    matches = [each for each in await store.list_api_keys() if each.key_hash.startswith(prefix)]
    if len(prefix) < _MIN_PREFIX or len(matches) != 1:
        raise InvalidRequest(
            f"{len(matches)} keys match; give the key itself or at least {_MIN_PREFIX} letters of one key's hash"
        )
    return matches[0]


def _row(key: ApiKeyRow, tenant_names: dict[str, str]) -> dict[str, str | None]:
    return {
        "hash": key.key_hash[:12],
        "tenant": tenant_names.get(key.tenant_id, key.tenant_id),
        "label": key.label,
        "created_at": _when(key.created_at),
        "revoked_at": None if key.revoked_at is None else _when(key.revoked_at),
    }


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
