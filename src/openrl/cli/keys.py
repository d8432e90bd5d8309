"""`openrl keys`, also `openrl admin keys`: makes, lists, rotates and revokes API keys."""

import asyncio
import time
from typing import Annotated

import typer

from openrl.cli.credentials import (
    DEFAULT_TENANT,
    KeyOptions,
    create_key,
    find_user,
    have_tenant,
    operator,
    wanted_tenants,
)
from openrl.cli.data_dir import open_store
from openrl.cli.options import ConfigFile, DataDirOption, JsonOption, print_json
from openrl.cli.tables import print_rows, show_when
from openrl.config import Config, load_config
from openrl.errors import InvalidRequest
from openrl.gateway.auth import hash_key, new_key
from openrl.store.base import Store
from openrl.store.identities import ApiKeyRow, Role

keys_app = typer.Typer(no_args_is_help=True, help="Make, list, rotate and revoke API keys.")
_MIN_PREFIX = 6
_COLUMNS = (
    "hash", "tenant", "user", "role", "project", "label", "created_at", "expires_at", "last_used_at", "revoked_at",
    "replaced_by",
)  # fmt: skip
KeyArgument = Annotated[str, typer.Argument(help="The key itself, or the beginning of its hash.")]


@keys_app.command("create")
def create(
    tenant: Annotated[str, typer.Option(help="Who the key is for; made if there is no such tenant.")] = DEFAULT_TENANT,
    user: Annotated[str | None, typer.Option(help="Id, address or subject of a user that the key is for.")] = None,
    role: Annotated[Role | None, typer.Option(help="What it may do; the user's role, or admin without one.")] = None,
    project: Annotated[str | None, typer.Option(help="It sees and makes only what is in this project.")] = None,
    label: Annotated[str, typer.Option(help="A note to tell keys apart.")] = "",
    ttl_s: Annotated[float | None, typer.Option(min=1, help="Seconds that it is valid for; else for ever.")] = None,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
) -> None:
    """Make a key and print it; it cannot be shown again."""
    options = KeyOptions(label, role or ("admin" if project is None else "member"), user or "", project, ttl_s)
    config = load_config(config_file, data_dir=data_dir)
    _print_key(asyncio.run(_create(config, tenant, options, role)), as_json)


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
    else:
        print_rows(rows, _COLUMNS)


@keys_app.command("rotate")
def rotate(
    key: KeyArgument,
    overlap_s: Annotated[float, typer.Option(min=0, help="Seconds that the old key goes on beside the new.")] = 86400.0,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
) -> None:
    """Make a key with the same rights in place of one, and print it."""
    _print_key(asyncio.run(_rotate(load_config(config_file, data_dir=data_dir), key, overlap_s)), as_json)


@keys_app.command("revoke")
def revoke(
    key: KeyArgument,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
) -> None:
    """Make a key invalid for good."""
    revoked = asyncio.run(_revoke(load_config(config_file, data_dir=data_dir), key))
    if as_json:
        print_json({"hash": revoked.key_id, "label": revoked.label})
    else:
        typer.echo(f"revoked {revoked.key_id} ({revoked.label or 'no label'})")


async def _create(config: Config, tenant_name: str, options: KeyOptions, role: Role | None) -> str:
    async with open_store(config) as (store, _):
        now = time.time()
        tenant = await have_tenant(store, tenant_name, now)
        if options.user_id:
            user = await find_user(store, tenant, options.user_id)
            options = options.of_user(user, role)
        return await create_key(store, tenant, options, now)


async def _list(config: Config, tenant_name: str | None) -> list[dict[str, str | None]]:
    async with open_store(config) as (store, _):
        return [_row(key, tenant, user) for key, tenant, user in await _named_keys(store, tenant_name)]


async def _rotate(config: Config, key: str, overlap_s: float) -> str:
    async with open_store(config) as (store, _):
        old, new = await _find_key(store, key), new_key()
        await store.identities.rotate_api_key(
            old.tenant_id, old.key_id, hash_key(new), overlap_s, time.time(), operator()
        )
        return new


async def _revoke(config: Config, key: str) -> ApiKeyRow:
    async with open_store(config) as (store, _):
        found = await _find_key(store, key)
        return await store.identities.revoke_api_key(found.tenant_id, found.key_id, time.time(), operator())


async def _find_key(store: Store, key: str) -> ApiKeyRow:
    prefix = hash_key(key) if key.startswith("tml-") else key
    matches = [row for row, _, _ in await _named_keys(store, None) if row.key_hash.startswith(prefix)]
    if len(prefix) < _MIN_PREFIX or len(matches) != 1:
        raise InvalidRequest(
            f"{len(matches)} keys match; give the key itself or at least {_MIN_PREFIX} letters of one key's hash"
        )
    return matches[0]


async def _named_keys(store: Store, tenant_name: str | None) -> list[tuple[ApiKeyRow, str, str | None]]:
    """Keys of one tenant or of all, with the names of their tenants and users, oldest first."""
    identities = store.identities
    found: list[tuple[ApiKeyRow, str, str | None]] = []
    for tenant in await wanted_tenants(store, tenant_name):
        names = {user.user_id: user.email or user.subject for user in await identities.list_users(tenant.tenant_id)}
        keys = await identities.list_api_keys(tenant.tenant_id)
        found += [(key, tenant.name, names.get(key.user_id)) for key in keys]
    return sorted(found, key=lambda each: (each[0].created_at, each[0].key_hash))


def _row(key: ApiKeyRow, tenant_name: str, user_name: str | None) -> dict[str, str | None]:
    return {
        "hash": key.key_id,
        "tenant": tenant_name,
        "user": user_name,
        "role": key.role,
        "project": key.project_id,
        "label": key.label,
        "created_at": show_when(key.created_at),
        "expires_at": show_when(key.expires_at),
        "last_used_at": show_when(key.last_used_at),
        "revoked_at": show_when(key.revoked_at),
        "replaced_by": key.replaced_by,
    }


def _print_key(key: str, as_json: bool) -> None:
    if as_json:
        print_json({"key": key, "hash": hash_key(key)[:12]})
    else:
        typer.echo(key)
