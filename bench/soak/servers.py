"""Starts what is put under load, with a key for each tenant."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.live_cluster import start_cluster
from tests.live_server import MODEL_NAME, start_server
from tests.postgres import new_database, start_postgres

from bench.soak.processes import children
from openrl.cli.credentials import KeyOptions, create_key, have_tenant
from openrl.cli.data_dir import open_store
from openrl.config import Config, StoreConfig

NAME = MODEL_NAME
"""What clients call the model."""


@dataclass(frozen=True, slots=True)
class Servers:
    """Processes under load."""

    ports: tuple[int, ...]  # of the gateways, on loopback
    keys: tuple[str, ...]  # of the tenants
    database_url: str
    pids: Callable[[], Mapping[str, Sequence[int]]]  # by role
    stop: Callable[[], object]


def serve(model_dir: Path, root: Path, num_tenants: int) -> Servers:
    """`openrl serve`: SQLite, gateway and scheduler in one process."""
    data_dir = root / "data"
    keys = asyncio.run(make_keys(Config(data_dir=data_dir), num_tenants))
    live = start_server(model_dir, data_dir, name=NAME)
    pid = live.process.pid
    return Servers(
        (urlsplit(live.url).port or 0,),
        keys,
        f"sqlite:///{data_dir / 'openrl.db'}",
        lambda: {"server": [pid], "worker": children(pid)},
        live.stop,
    )


def cluster(model_dir: Path, root: Path, num_tenants: int) -> Servers:
    """Two gateways, a scheduler and a worker over PostgreSQL."""
    postgres = start_postgres(root)
    url = new_database(postgres)
    live = start_cluster(model_dir, root / "cluster", url, schedulers=1, workers=1)
    keys = asyncio.run(make_keys(Config(data_dir=live.data_dir, store=StoreConfig(url=url)), num_tenants))

    def pids() -> dict[str, list[int]]:
        started = {role: [each.pid for each in of_role.values()] for role, of_role in live.processes.items()}
        return {
            **{role: _families(parents) for role, parents in started.items()},
            "postgres": [postgres.process.pid, *children(postgres.process.pid)],
        }

    def stop() -> None:
        live.stop()
        postgres.stop()

    ports = tuple(urlsplit(each).port or 0 for each in live.urls)
    return Servers(ports, keys, url.replace("postgresql:", "postgresql+psycopg:"), pids, stop)


def _families(parents: Sequence[int]) -> list[int]:
    return [each for pid in parents for each in (pid, *children(pid))]


async def make_keys(config: Config, num_tenants: int) -> tuple[str, ...]:
    """One key each for so many new tenants."""
    async with open_store(config) as (store, _):
        names = [f"tenant-{number:02}" for number in range(num_tenants)]
        now = time.time()
        return tuple(
            [await create_key(store, await have_tenant(store, name, now), KeyOptions("soak"), now) for name in names]
        )


FORMS: Mapping[str, Callable[[Path, Path, int], Servers]] = {"serve": serve, "cluster": cluster}
