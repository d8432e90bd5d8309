"""`openrl admin users`: adds, lists and changes the users of a tenant."""

import asyncio
import time
import uuid
from dataclasses import replace
from typing import Annotated

import typer

from openrl.cli.credentials import DEFAULT_TENANT, find_tenant, find_user, operator
from openrl.cli.data_dir import open_store
from openrl.cli.options import ConfigFile, DataDirOption, JsonOption, TenantOption, print_json
from openrl.cli.tables import print_rows, show_when
from openrl.config import Config, load_config
from openrl.store.identities import Role, UserRow

users_app = typer.Typer(no_args_is_help=True, help="Add, list and change users of a tenant.")
UserArgument = Annotated[str, typer.Argument(help="Id, address or subject of the user.")]
Shown = dict[str, str | None]
_COLUMNS = ("user_id", "email", "subject", "display_name", "role", "created_at", "disabled_at")


@users_app.command("add")
def add(
    email: Annotated[str, typer.Argument(help="Address; who signs in with it, verified, is this user.")] = "",
    subject: Annotated[str, typer.Option(help="Who the identity provider says it is: `sub` of its tokens.")] = "",
    name: Annotated[str, typer.Option(help="For people.")] = "",
    role: Annotated[Role, typer.Option(help="What the user may do.")] = "member",
    tenant: TenantOption = DEFAULT_TENANT,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
) -> None:
    """Add a user with an address, a subject, or both."""
    user = UserRow(uuid.uuid4().hex, "", role, time.time(), email.lower(), subject, name)
    _print([asyncio.run(_add(load_config(config_file, data_dir=data_dir), tenant, user))], as_json)


@users_app.command("list")
def list_users(
    tenant: TenantOption = DEFAULT_TENANT,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
) -> None:
    """Show the users of a tenant, oldest first."""
    _print(asyncio.run(_list(load_config(config_file, data_dir=data_dir), tenant)), as_json)


@users_app.command("set-role")
def set_role(
    user: UserArgument,
    role: Annotated[Role, typer.Argument(help="What the user may do.")],
    tenant: TenantOption = DEFAULT_TENANT,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
) -> None:
    """Give a user another role; its keys never allow more."""
    _print([asyncio.run(_update(load_config(config_file, data_dir=data_dir), tenant, user, role, None))], as_json)


@users_app.command("disable")
def disable(
    user: UserArgument,
    undo: Annotated[bool, typer.Option(help="Let it in again.")] = False,
    tenant: TenantOption = DEFAULT_TENANT,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
) -> None:
    """Refuse all credentials of a user; what it made stays its tenant's."""
    config = load_config(config_file, data_dir=data_dir)
    _print([asyncio.run(_update(config, tenant, user, None, not undo))], as_json)


async def _add(config: Config, tenant_name: str, user: UserRow) -> Shown:
    async with open_store(config) as (store, _):
        tenant = await find_tenant(store, tenant_name)
        return _row(await store.identities.add_user(replace(user, tenant_id=tenant.tenant_id), operator()))


async def _list(config: Config, tenant_name: str) -> list[Shown]:
    async with open_store(config) as (store, _):
        tenant = await find_tenant(store, tenant_name)
        return [_row(user) for user in await store.identities.list_users(tenant.tenant_id)]


async def _update(config: Config, tenant_name: str, name: str, role: Role | None, is_disabled: bool | None) -> Shown:
    async with open_store(config) as (store, _):
        tenant = await find_tenant(store, tenant_name)
        user = await find_user(store, tenant, name)
        changed = store.identities.update_user(
            tenant.tenant_id, user.user_id, time.time(), operator(), role=role, is_disabled=is_disabled
        )
        return _row(await changed)


def _row(user: UserRow) -> Shown:
    return {
        "user_id": user.user_id,
        "email": user.email,
        "subject": user.subject,
        "display_name": user.display_name,
        "role": user.role,
        "created_at": show_when(user.created_at),
        "disabled_at": show_when(user.disabled_at),
    }


def _print(rows: list[Shown], as_json: bool) -> None:
    if as_json:
        print_json(rows)
    else:
        print_rows(rows, _COLUMNS)
