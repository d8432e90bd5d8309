"""`openrl admin share`: makes, lists and revokes tokens with which others read one checkpoint."""

import asyncio
import secrets
import time
from typing import Annotated

import typer

from openrl.cli.credentials import DEFAULT_TENANT, find_tenant, operator
from openrl.cli.data_dir import open_store
from openrl.cli.options import ConfigFile, DataDirOption, JsonOption, TenantOption, print_json
from openrl.cli.tables import print_rows, show_when
from openrl.config import Config, load_config
from openrl.gateway.auth import hash_key
from openrl.gateway.checkpoint_access import SHARE_PREFIX
from openrl.protocol.paths import CheckpointPath, parse_checkpoint_path
from openrl.store.identities import ShareRow

shares_app = typer.Typer(no_args_is_help=True, help="Tokens with which others read one checkpoint.")
Shown = dict[str, str | None]
_COLUMNS = ("share_id", "tinker_path", "label", "created_at", "expires_at", "revoked_at")


@shares_app.command("create")
def create(
    path: Annotated[str, typer.Argument(help="tinker:// path of the checkpoint.")],
    ttl_s: Annotated[float, typer.Option(min=60, help="Seconds that the token is valid for.")] = 7 * 86400.0,
    label: Annotated[str, typer.Option(help="A note to tell shares apart.")] = "",
    tenant: TenantOption = DEFAULT_TENANT,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
) -> None:
    """Make a token for a checkpoint and print it; it cannot be shown again."""
    config = load_config(config_file, data_dir=data_dir)
    token, row = asyncio.run(_create(config, tenant, path, ttl_s, label))
    if as_json:
        print_json({**row, "token": token})
    else:
        typer.echo(token)


@shares_app.command("list")
def list_shares(
    tenant: TenantOption = DEFAULT_TENANT,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
) -> None:
    """Show the shares of a tenant, newest first: never the tokens themselves."""
    _print(asyncio.run(_list(load_config(config_file, data_dir=data_dir), tenant)), as_json)


@shares_app.command("revoke")
def revoke(
    share_id: Annotated[str, typer.Argument(help="As `list` shows it.")],
    tenant: TenantOption = DEFAULT_TENANT,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
) -> None:
    """End a share at once; what was loaded or copied with it stays."""
    _print([asyncio.run(_revoke(load_config(config_file, data_dir=data_dir), tenant, share_id))], as_json)


async def _create(config: Config, tenant_name: str, path: str, ttl_s: float, label: str) -> tuple[str, Shown]:
    at, token, now = parse_checkpoint_path(path), SHARE_PREFIX + secrets.token_urlsafe(32), time.time()
    async with open_store(config) as (store, _):
        tenant_id = (await find_tenant(store, tenant_name)).tenant_id
        share = ShareRow(hash_key(token), tenant_id, at.run_id, at.kind, at.name, now, now + ttl_s, label)
        return token, _row(await store.create_share(share, operator()))


async def _list(config: Config, tenant_name: str) -> list[Shown]:
    async with open_store(config) as (store, _):
        tenant = await find_tenant(store, tenant_name)
        return [_row(share) for share in await store.list_shares(tenant.tenant_id)]


async def _revoke(config: Config, tenant_name: str, share_id: str) -> Shown:
    async with open_store(config) as (store, _):
        tenant = await find_tenant(store, tenant_name)
        return _row(await store.revoke_share(tenant.tenant_id, share_id, time.time(), operator()))


def _row(share: ShareRow) -> Shown:
    return {
        "share_id": share.share_id,
        "tinker_path": str(CheckpointPath(share.run_id, share.kind, share.name)),
        "label": share.label,
        "created_at": show_when(share.created_at),
        "expires_at": show_when(share.expires_at),
        "revoked_at": show_when(share.revoked_at),
    }


def _print(rows: list[Shown], as_json: bool) -> None:
    if as_json:
        print_json(rows)
    else:
        print_rows(rows, _COLUMNS)
