"""`openrl cluster`: what runs where, what was asked, and emptying a worker; for operators, over the store."""

import asyncio
import secrets
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from openrl.cli.data_dir import check_is_shared, open_store
from openrl.cli.options import ConfigFile, DataDirOption, JsonOption, print_json
from openrl.cli.pools import read_rates
from openrl.cli.recording import read_span, recorded
from openrl.cli.tables import print_rows
from openrl.config import Config, load_config
from openrl.errors import NotFound, Unavailable
from openrl.scheduler.demand import pool_signals
from openrl.scheduler.seat import LEASE
from openrl.store.base import Store
from openrl.store.cluster import Signal, SignalKind, WorkerStatus
from openrl.store.ledger import HOUR_S

cluster_app = typer.Typer(no_args_is_help=True, help="Workers, pools and what waits; emptying a worker.")
_LOOK_S = 0.5
_HOURS = 2
"""Device time is counted by hours: the one under way and the one before."""
_COLUMNS = {
    "pools": ("pool", "wanted_workers", "workers", "waiting_requests", "waiting_seconds", "live_runs"),
    "workers": ("worker", "pool", "role", "state", "base_models", "runs", "requests"),
    "queue": ("tenant", "base_model", "side", "requests", "tokens", "oldest_seconds"),
    "runs": ("run_id", "tenant", "base_model", "gpu_seconds", "gpu_duty"),
}
Rows = list[dict[str, Any]]


@cluster_app.command("status")
def status(as_json: JsonOption = False, data_dir: DataDirOption = None, config_file: ConfigFile = None) -> None:
    """Show pools, workers and what they hold, what waits, and each open run's share of a device lately."""
    tables = asyncio.run(_status(load_config(config_file, data_dir=data_dir)))
    if as_json:
        print_json(tables)
        return
    typer.echo(f"Leader: {tables['leader'] or 'none'}")
    for name, columns in _COLUMNS.items():
        typer.echo(f"\n{name.capitalize()}")
        print_rows(tables[name], columns)


@cluster_app.command("record")
def record(
    output: Annotated[Path, typer.Argument(help="The file to write, with a line of JSON for each session.")],
    since: Annotated[str, typer.Option(help="How far back: 90m, 24h, 7d.")] = "24h",
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
) -> None:
    """Write who asked for what when, as `bench.autoscale --trace` reads it; models alone are named."""
    lines = asyncio.run(_record(load_config(config_file, data_dir=data_dir), read_span(since)))
    output.write_text("".join(f"{line}\n" for line in lines))
    typer.echo(f"{len(lines)} sessions in {output}.")


@cluster_app.command("drain")
def drain(
    worker: Annotated[str, typer.Argument(help="The worker's name, as `openrl cluster status` shows it.")],
    undo: Annotated[bool, typer.Option("--undo", help="Use it again.")] = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until it is done.")] = 300.0,
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
) -> None:
    """Let a worker finish what it has in hand, move its runs to others, and keep it empty until it is started anew."""
    found = asyncio.run(_drain(load_config(config_file, data_dir=data_dir), worker, wait, undo=undo))
    typer.echo(f"Worker {worker} is {found}.")


async def _record(config: Config, span_s: float) -> list[str]:
    async with open_store(config) as (store, _):
        until = time.time()
        loads = await store.ledger.load(until - span_s, until)
        return list(recorded(loads, until - span_s, until, secrets.token_bytes(16)))


async def _drain(config: Config, name: str, wait_s: float, *, undo: bool) -> str:
    kind: SignalKind = "resume_worker" if undo else "drain_worker"
    deadline = time.monotonic() + wait_s
    async with open_store(config) as (store, _):
        check_is_shared(store)
        while True:
            worker = await _worker(store, name)
            if worker.state == ("working" if undo else "drained"):
                return worker.state
            if time.monotonic() >= deadline:
                raise Unavailable(
                    f"worker {name!r} is {worker.state} after {wait_s:.0f} s, with {worker.num_runs} runs"
                )
            await store.cluster.tell(Signal(kind, name))  # again and again: a signal may be lost
            await asyncio.sleep(_LOOK_S)


async def _worker(store: Store, name: str) -> WorkerStatus:
    """Raises NotFound with the names there are, Unavailable while nobody leads."""
    if await store.cluster.read_lease(LEASE) is None:
        raise Unavailable("no scheduler leads: start one, or try again in a few seconds")
    workers = (await store.cluster.status()).workers
    for worker in workers:
        if worker.name == name:
            return worker
    names = ", ".join(worker.name for worker in workers) or "none"
    raise NotFound(f"there is no worker {name!r}; workers: {names}")


async def _status(config: Config) -> dict[str, Any]:
    async with open_store(config) as (store, _):
        cluster, now = store.cluster, time.time()
        lease, shown, demands = await cluster.read_lease(LEASE), await cluster.status(), await cluster.demand()
        tenants = {tenant.tenant_id: tenant.name for tenant in await store.identities.list_tenants()}
        signals = pool_signals(config, demands, shown, now, rates=await read_rates(cluster, now))
        return {
            "leader": None if lease is None else lease.address,
            "pools": [{name: getattr(each, name) for name in _COLUMNS["pools"]} for each in signals.values()],
            "workers": [_worker_row(worker) for worker in shown.workers],
            "queue": [
                {
                    "tenant": tenants.get(each.tenant_id, each.tenant_id),
                    "base_model": each.base_model,
                    "side": each.side,
                    "requests": each.num_requests,
                    "tokens": each.num_tokens,
                    "oldest_seconds": round(max(0.0, now - (each.oldest_at or now)), 1),
                }
                for each in demands
                if each.num_requests
            ],
            "runs": await _runs(store, tenants, now),
        }


def _worker_row(worker: WorkerStatus) -> dict[str, Any]:
    return {
        "worker": worker.name,
        "pool": worker.pool,
        "role": worker.role,
        "state": worker.state,
        "base_models": list(worker.base_models),
        "runs": worker.num_runs,
        "requests": worker.num_requests,
    }


async def _runs(store: Store, tenants: dict[str, str], now: float) -> Rows:
    """Open runs; duty 1.0: one device was busy with it all the time."""
    first_hour = int(now // HOUR_S) - _HOURS + 1
    busy_us: Counter[str] = Counter()
    for spent in await store.ledger.spending(None, first_hour, first_hour + _HOURS):
        busy_us[spent.run_id] += spent.busy_us
    rows: Rows = []
    for run in await store.live_runs():
        busy_s = busy_us[run.spec.run_id] / 1e6
        window_s = now - max(first_hour * HOUR_S, min(run.created_at, now - 1.0))
        rows.append(
            {
                "run_id": run.spec.run_id,
                "tenant": tenants.get(run.spec.tenant_id, run.spec.tenant_id),
                "base_model": run.spec.base_model,
                "gpu_seconds": round(busy_s, 3),
                "gpu_duty": round(busy_s / window_s, 4),
            }
        )
    return rows
