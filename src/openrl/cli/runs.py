"""`openrl runs`: lists training runs."""

import asyncio
import time
from typing import Annotated

import typer

from openrl.cli.credentials import wanted_tenants
from openrl.cli.data_dir import open_store
from openrl.cli.options import ConfigFile, DataDirOption, JsonOption, print_json
from openrl.cli.tables import Cell, print_rows, show_when
from openrl.config import Config, load_config
from openrl.store.base import RunRow
from openrl.store.costs import Bill, add_up
from openrl.store.ledger import HOUR_S

_COLUMNS = (
    "run_id", "tenant", "base_model", "rank", "state", "created_at", "last_request_at", "gpu_seconds", "cost_usd",
)  # fmt: skip


def runs(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's runs.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many of each tenant, newest first.")] = 50,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
) -> None:
    """Show training runs, newest first, with the device time of each and what it cost."""
    rows = asyncio.run(_list(load_config(config_file, data_dir=data_dir), tenant, limit))
    if as_json:
        print_json(rows)
        return
    print_rows(rows, _COLUMNS)


async def _list(config: Config, tenant_name: str | None, limit: int) -> list[dict[str, Cell]]:
    async with open_store(config) as (store, _):
        tenants = await wanted_tenants(store, tenant_name)
        found: list[tuple[RunRow, str, Bill]] = []
        for tenant in tenants:
            page = await store.list_runs(tenant.tenant_id, limit, 0)
            spent = await store.ledger.spending(tenant.tenant_id, 0, int(time.time() // HOUR_S) + 1)
            bills = add_up(spent, config.gateway.rates, lambda each: each.run_id)
            found.extend((run, tenant.name, bills.get(run.spec.run_id, Bill())) for run in page.items)
    found.sort(key=lambda each: each[0].created_at, reverse=True)
    return [_row(run, name, bill) for run, name, bill in found]


def _row(run: RunRow, tenant_name: str, bill: Bill) -> dict[str, Cell]:
    return {
        "run_id": run.spec.run_id,
        "tenant": tenant_name,
        "base_model": run.spec.base_model,
        "rank": run.spec.rank,
        "state": "closed" if run.is_closed else "open",
        "created_at": show_when(run.created_at),
        "last_request_at": show_when(run.last_request_at),
        "gpu_seconds": round(bill.gpu_seconds, 3),
        "cost_usd": None if bill.cost_usd is None else round(bill.cost_usd, 6),
    }
