"""`openrl runs`: lists training runs."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated

import typer

from openrl.cli.credentials import find_tenant
from openrl.cli.data_dir import open_store
from openrl.cli.options import ConfigFile, DataDirOption, JsonOption, print_json
from openrl.cli.tables import print_table
from openrl.config import Config, load_config
from openrl.store.base import RunRow

_COLUMNS = ("run_id", "tenant", "base_model", "rank", "state", "created_at", "last_request_at")


def runs(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's runs.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many of each tenant, newest first.")] = 50,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
) -> None:
    """Show training runs, newest first."""
    rows = asyncio.run(_list(load_config(config_file, data_dir=data_dir), tenant, limit))
    if as_json:
        print_json(rows)
        return
    print_table(_COLUMNS, ([row[column] for column in _COLUMNS] for row in rows))


async def _list(config: Config, tenant_name: str | None, limit: int) -> list[dict[str, str | int]]:
    async with open_store(config) as (store, _):
        tenants = await store.list_tenants() if tenant_name is None else (await find_tenant(store, tenant_name),)
        found: list[tuple[RunRow, str]] = []
        for tenant in tenants:
            page = await store.list_runs(tenant.tenant_id, limit, 0)
            found.extend((run, tenant.name) for run in page.items)
    found.sort(key=lambda each: each[0].created_at, reverse=True)
    return [_row(run, name) for run, name in found]


def _row(run: RunRow, tenant_name: str) -> dict[str, str | int]:
    return {
        "run_id": run.spec.run_id,
        "tenant": tenant_name,
        "base_model": run.spec.base_model,
        "rank": run.spec.rank,
        "state": "closed" if run.is_closed else "open",
        "created_at": _when(run.created_at),
        "last_request_at": _when(run.last_request_at),
    }


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
