"""`openrl admin quotas` and `openrl admin usage`: what tenants and projects may use, and what they have used."""

import asyncio
import math
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Literal

import typer

from openrl.cli.credentials import find_tenant, operator, wanted_tenants
from openrl.cli.data_dir import open_store
from openrl.cli.options import ConfigFile, DataDirOption, JsonOption, print_json
from openrl.cli.tables import Cell, print_rows, print_table
from openrl.config import Config, load_config
from openrl.errors import BadValue, InvalidRequest
from openrl.store.base import Store
from openrl.store.cluster import Signal
from openrl.store.costs import add_up, show_cost
from openrl.store.identities import TenantRow
from openrl.store.ledger import HOUR_S, Spending
from openrl.store.quotas import LIMIT_NAMES, NO_LIMITS, UNLIMITED, Limits, QuotaRow, default_limits

quotas_app = typer.Typer(no_args_is_help=True, help="Show, set and clear quotas of tenants and projects.")
TenantArgument = Annotated[str, typer.Argument(help="The tenant's name.")]
ProjectOption = Annotated[str, typer.Option(help="Of this project; without it, of the whole tenant.")]
LimitOption = Annotated[str | None, typer.Option(help="A number, 'unlimited', or 'default'.")]
_AT_LEAST_ONE = ("running_requests", "queued_requests")
_POSITIVE = ("tokens_per_s", "burst_tokens", "requests_per_s", "weight")


@quotas_app.command("show")
def show(
    tenant: Annotated[str | None, typer.Argument(help="Only this tenant's.")] = None,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
) -> None:
    """Show quotas that apply, beside what is in use."""
    rows = asyncio.run(_show(load_config(config_file, data_dir=data_dir), tenant))
    if as_json:
        print_json(rows)
        return
    print_rows(rows, ("tenant", "project", "quota", "limit", "used"))


@quotas_app.command("set")
def set_quota(
    tenant: TenantArgument,
    project: ProjectOption = "",
    gpu_seconds_month: LimitOption = None,
    gpu_seconds_day: LimitOption = None,
    stored_bytes: LimitOption = None,
    live_runs: LimitOption = None,
    running_requests: LimitOption = None,
    queued_requests: LimitOption = None,
    tokens_per_s: LimitOption = None,
    burst_tokens: LimitOption = None,
    requests_per_s: LimitOption = None,
    weight: Annotated[str | None, typer.Option(help="Share of a device where several want it, or 'default'.")] = None,
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
) -> None:
    """Change the given quotas; others stay as they are. A running server follows within two seconds."""
    given = {
        "gpu_seconds_month": gpu_seconds_month, "gpu_seconds_day": gpu_seconds_day, "stored_bytes": stored_bytes,
        "live_runs": live_runs, "running_requests": running_requests, "queued_requests": queued_requests,
        "tokens_per_s": tokens_per_s, "burst_tokens": burst_tokens, "requests_per_s": requests_per_s, "weight": weight,
    }  # fmt: skip
    changes = {name: read_limit(name, text) for name, text in given.items() if text is not None}
    if project and {"weight", "requests_per_s"} & changes.keys():
        raise InvalidRequest("weight and requests-per-s are of the whole tenant; leave out --project")
    if not changes:
        raise InvalidRequest("give at least one quota to set; `openrl admin quotas set --help` lists them")
    asyncio.run(_set(load_config(config_file, data_dir=data_dir), tenant, project, changes))


@quotas_app.command("clear")
def clear(
    tenant: TenantArgument,
    project: ProjectOption = "",
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
) -> None:
    """Forget all that was set: back to the configured defaults."""
    asyncio.run(_clear(load_config(config_file, data_dir=data_dir), tenant, project))


def usage(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    by: Annotated[Literal["run", "project", "tenant"], typer.Option(help="One row for each of these.")] = "tenant",
    days: Annotated[int, typer.Option(min=1, help="Of so many days, today included.")] = 30,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
) -> None:
    """Show GPU-seconds, tokens and estimated cost."""
    rows = asyncio.run(_usage(load_config(config_file, data_dir=data_dir), tenant, by, days))
    if as_json:
        print_json(rows)
        return
    columns = ("tenant", *((by,) if by != "tenant" else ()), "gpu_seconds", "training_tokens", "sampling_tokens")
    print_table(
        (*columns, "cost_usd"),
        ([*(row[name] for name in columns), show_cost(row["cost_usd"])] for row in rows),  # pyright: ignore[reportArgumentType]
    )


def read_limit(name: str, text: str) -> float | None:
    """The value of a limit; None for the default. Raises BadValue."""
    if text == "default":
        return None
    if text == "unlimited" and name != "weight":
        return UNLIMITED
    option = f"--{name.replace('_', '-')}"
    try:
        value = float(text)
    except ValueError:
        raise BadValue(option, text, "a number, 'unlimited' or 'default'", "malformed") from None
    least = 1.0 if name in _AT_LEAST_ONE else 0.0
    if not least <= value < math.inf or (name in _POSITIVE and value == 0.0):
        bound = "above 0" if name in _POSITIVE else f"at least {least:.0f}"
        raise BadValue(option, text, f"{bound}, 'unlimited' or 'default'")
    return value


async def _set(config: Config, tenant_name: str, project_id: str, changes: dict[str, float | None]) -> None:
    async with open_store(config) as (store, _):
        tenant = await find_tenant(store, tenant_name)
        if project_id:
            await _check_project(store, tenant, project_id)
        rows = await store.quotas.quotas_of(tenant.tenant_id)
        new = QuotaRow(tenant.tenant_id, project_id, NO_LIMITS, 0.0)
        old = next((row for row in rows if row.project_id == project_id), new)
        weight = changes.pop("weight", old.weight)
        limits = replace(old.limits, **changes)
        await store.quotas.put_quota(replace(old, limits=limits, weight=weight, changed_at=time.time()), operator())
        await store.cluster.tell(Signal("quotas_changed", tenant.tenant_id))


async def _clear(config: Config, tenant_name: str, project_id: str) -> None:
    async with open_store(config) as (store, _):
        tenant = await find_tenant(store, tenant_name)
        await store.quotas.clear_quota(tenant.tenant_id, project_id, time.time(), operator())
        await store.cluster.tell(Signal("quotas_changed", tenant.tenant_id))


async def _check_project(store: Store, tenant: TenantRow, project_id: str) -> None:
    known = [project.project_id for project in await store.ledger.list_projects(tenant.tenant_id)]
    if project_id not in known:
        names = ", ".join(known) or "none so far"
        raise InvalidRequest(f"tenant {tenant.name!r} has no project {project_id!r}; projects: {names}")


async def _show(config: Config, tenant_name: str | None) -> list[dict[str, Cell]]:
    async with open_store(config) as (store, _):
        found: list[dict[str, Cell]] = []
        for tenant in await wanted_tenants(store, tenant_name):
            rows = {row.project_id: row for row in await store.quotas.quotas_of(tenant.tenant_id)}
            used = await _used(store, tenant.tenant_id)
            for project_id in sorted({"", *rows}):
                row = rows.get(project_id)
                limits = NO_LIMITS if row is None else row.limits
                limits = limits if project_id else limits.over(default_limits(config.quotas))
                about: dict[str, Cell] = {"tenant": tenant.name, "project": project_id or None}
                found += [about | line for line in _lines(limits, used.get(project_id, {}))]
                if row is not None and row.weight is not None:
                    found.append(about | {"quota": "weight", "limit": row.weight, "used": None})
        return found


def _lines(limits: Limits, used: dict[str, float]) -> list[dict[str, Cell]]:
    """One for each limit that is set."""
    values = {name: value for name in LIMIT_NAMES if (value := getattr(limits, name)) is not None}
    return [
        {
            "quota": name,
            "limit": "unlimited" if value == UNLIMITED else _plain(value),
            "used": _plain(used[name]) if name in used else None,
        }
        for name, value in values.items()
    ]


def _plain(value: float) -> int | float:
    return int(value) if value == int(value) else round(value, 3)


async def _used(store: Store, tenant_id: str) -> dict[str, dict[str, float]]:
    """What is in use by project, "" for the whole tenant; limits of rate are not used up."""
    now = datetime.now(UTC)
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    held = await store.quotas.holdings(tenant_id)
    counts: dict[str, dict[str, float]] = {
        "stored_bytes": {each.project_id: each.stored_bytes for each in held},
        "live_runs": {each.project_id: each.live_runs for each in held},
        "queued_requests": dict(await store.quotas.num_queued(tenant_id)),
    }
    for name, start in (("gpu_seconds_day", day), ("gpu_seconds_month", day.replace(day=1))):
        use = await store.quotas.device_use(int(start.timestamp() // HOUR_S))
        counts[name] = {each.project_id: each.busy_us / 1e6 for each in use if each.tenant_id == tenant_id}
    projects = {project_id for by_project in counts.values() for project_id in by_project}
    used = {each: {name: by_project.get(each, 0) for name, by_project in counts.items()} for each in projects}
    return used | {"": {name: sum(by_project.values()) for name, by_project in counts.items()}}


async def _usage(
    config: Config, tenant_name: str | None, by: Literal["run", "project", "tenant"], days: int
) -> list[dict[str, Cell]]:
    async with open_store(config) as (store, _):
        names = {tenant.tenant_id: tenant.name for tenant in await wanted_tenants(store, tenant_name)}
        end_hour = int(time.time() // HOUR_S) + 1
        first_hour = (end_hour - 1) // 24 * 24 - 24 * (days - 1)
        found: list[dict[str, Cell]] = []
        for tenant_id, name in sorted(names.items(), key=lambda each: each[1]):
            spent = await store.ledger.spending(tenant_id, first_hour, end_hour)
            for key, bill in add_up(spent, config.gateway.rates, lambda each: _key(each, by)).items():
                about: dict[str, Cell] = {"tenant": name, by: name if by == "tenant" else key}
                tokens: dict[str, Cell] = {
                    "training_tokens": bill.training_tokens, "sampling_tokens": bill.sampling_tokens,
                }  # fmt: skip
                found.append(about | {"gpu_seconds": bill.gpu_seconds} | tokens | {"cost_usd": bill.cost_usd})
        return found


def _key(spent: Spending, by: Literal["run", "project", "tenant"]) -> str:
    match by:
        case "run":
            return spent.run_id or f"{spent.session_id} (no run)"
        case "project":
            return spent.project_id
        case "tenant":
            return spent.tenant_id
