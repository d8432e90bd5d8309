"""`openrl admin tenants`: makes, lists and disables tenants."""

import asyncio
import time
import uuid
from typing import Annotated

import typer

from openrl.cli.credentials import find_tenant, operator
from openrl.cli.data_dir import open_store
from openrl.cli.options import ConfigFile, DataDirOption, JsonOption, print_json
from openrl.cli.tables import print_rows, show_when
from openrl.config import Config, load_config
from openrl.errors import InvalidRequest
from openrl.store.identities import TenantRow

tenants_app = typer.Typer(no_args_is_help=True, help="Make, list and disable tenants.")
NameArgument = Annotated[str, typer.Argument(help="Name of the tenant.")]
Shown = dict[str, str | None]
_COLUMNS = ("tenant_id", "name", "created_at", "disabled_at")


@tenants_app.command("create")
def create(
    name: NameArgument, as_json: JsonOption = False, data_dir: DataDirOption = None, config_file: ConfigFile = None
) -> None:
    """Make a tenant. Tokens of an identity provider name it by this name."""
    _print([asyncio.run(_create(load_config(config_file, data_dir=data_dir), name))], as_json)


@tenants_app.command("list")
def list_tenants(as_json: JsonOption = False, data_dir: DataDirOption = None, config_file: ConfigFile = None) -> None:
    """Show all tenants, oldest first."""
    _print(asyncio.run(_list(load_config(config_file, data_dir=data_dir))), as_json)


@tenants_app.command("disable")
def disable(
    name: NameArgument,
    undo: Annotated[bool, typer.Option(help="Let it in again.")] = False,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
) -> None:
    """Refuse all credentials of a tenant; what it has stays."""
    config = load_config(config_file, data_dir=data_dir)
    _print([asyncio.run(_set_disabled(config, name, not undo))], as_json)


async def _create(config: Config, name: str) -> Shown:
    async with open_store(config) as (store, _):
        if any(tenant.name == name for tenant in await store.identities.list_tenants()):
            raise InvalidRequest(f"there is a tenant {name!r} already", "name_taken", value=name)
        tenant = TenantRow(uuid.uuid4().hex, name, time.time())
        return _row(await store.identities.create_tenant(tenant, operator()))


async def _list(config: Config) -> list[Shown]:
    async with open_store(config) as (store, _):
        return [_row(tenant) for tenant in await store.identities.list_tenants()]


async def _set_disabled(config: Config, name: str, is_disabled: bool) -> Shown:
    async with open_store(config) as (store, _):
        tenant = await find_tenant(store, name)
        changed = store.identities.set_tenant_disabled(tenant.tenant_id, is_disabled, time.time(), operator())
        return _row(await changed)


def _row(tenant: TenantRow) -> Shown:
    return {
        "tenant_id": tenant.tenant_id,
        "name": tenant.name,
        "created_at": show_when(tenant.created_at),
        "disabled_at": show_when(tenant.disabled_at),
    }


def _print(rows: list[Shown], as_json: bool) -> None:
    if as_json:
        print_json(rows)
    else:
        print_rows(rows, _COLUMNS)
