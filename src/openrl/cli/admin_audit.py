"""`openrl admin audit`: lists what was done to the things of tenants."""

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from openrl.cli.credentials import wanted_tenants
from openrl.cli.data_dir import open_store
from openrl.cli.options import ConfigFile, DataDirOption, JsonOption, print_json
from openrl.cli.tables import print_rows, show_when
from openrl.config import Config, load_config

_COLUMNS = ("at", "tenant", "actor", "event", "details")


def audit(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's entries.")] = None,
    day: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="A day of UTC; the last 24 hours if absent.")
    ] = None,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
) -> None:
    """Show the audit log, oldest entry first."""
    rows = asyncio.run(_list(load_config(config_file, data_dir=data_dir), tenant, day))
    if as_json:
        print_json(rows)
        return
    print_rows([{**row, "details": json.dumps(row["details"])} for row in rows], _COLUMNS)


async def _list(config: Config, tenant_name: str | None, day: datetime | None) -> list[dict[str, Any]]:
    start = datetime.fromtimestamp(time.time(), UTC) - timedelta(days=1) if day is None else day.replace(tzinfo=UTC)
    # Entries of this second are there as well.
    since, until = start.timestamp(), (start + timedelta(days=1)).timestamp() + (day is None)
    async with open_store(config) as (store, _):
        found = [
            (entry, tenant.name)
            for tenant in await wanted_tenants(store, tenant_name)
            for entry in await store.ledger.audit_log(tenant.tenant_id, None, since, until)
        ]
    return [
        {
            "at": show_when(entry.created_at),
            "tenant": name,
            "actor": entry.details.get("actor"),
            "event": entry.event,
            "details": {key: value for key, value in entry.details.items() if key != "actor"},
        }
        for entry, name in sorted(found, key=lambda each: each[0].created_at)
    ]
