"""`openrl projects`: lists projects with what is in them."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated

import typer

from openrl.cli.credentials import wanted_tenants
from openrl.cli.data_dir import open_store
from openrl.cli.options import ConfigFile, DataDirOption, JsonOption, print_json
from openrl.cli.tables import print_table
from openrl.config import Config, load_config
from openrl.store.ledger import ProjectSummary

_COLUMNS = ("project_id", "tenant", "created_at", "sessions", "runs", "checkpoints", "bytes")


def projects(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's projects.")] = None,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
) -> None:
    """Show projects with their sessions, runs and stored bytes, oldest first."""
    rows = asyncio.run(_list(load_config(config_file, data_dir=data_dir), tenant))
    if as_json:
        print_json(rows)
        return
    print_table(_COLUMNS, ([row[column] for column in _COLUMNS] for row in rows))


async def _list(config: Config, tenant_name: str | None) -> list[dict[str, str | int]]:
    async with open_store(config) as (store, _):
        tenants = await wanted_tenants(store, tenant_name)
        return [
            _row(project, tenant.name)
            for tenant in tenants
            for project in await store.ledger.list_projects(tenant.tenant_id)
        ]


def _row(project: ProjectSummary, tenant_name: str) -> dict[str, str | int]:
    return {
        "project_id": project.project_id,
        "tenant": tenant_name,
        "created_at": datetime.fromtimestamp(project.created_at, UTC).isoformat(timespec="seconds"),
        "sessions": project.num_sessions,
        "runs": project.num_runs,
        "checkpoints": project.num_checkpoints,
        "bytes": project.checkpoint_bytes,
    }
