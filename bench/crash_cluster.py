"""The installation of many processes that bench.crash kills: gateways, schedulers and workers over PostgreSQL."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.live_cluster import ROLES, TENANTS, LiveCluster, Role, start_cluster
from tests.postgres import PostgresServer, new_database, start_postgres

from bench.crash_serve import CONFIG, drafts_in
from bench.service_front import ServiceFront
from openrl.store.base import Blobs
from openrl.store.blobs import DirectoryBlobs

KINDS = {"gateway": 2.0, "leader": 2.0, "standby": 1.0, "worker": 2.0, "connections": 1.0, "network": 0.5}
"""How likely each kill is. `connections`: all to the database; `network`: all between clients and gateways."""


@dataclass(slots=True)
class ClusterInstallation:
    """Two of each, over one PostgreSQL and one directory."""

    model_dir: Path
    home: Path
    config: str = CONFIG
    source: Path | None = None  # of another version, where it is to begin with that
    url: str = ""
    keys: Mapping[str, str] = field(default_factory=dict[str, str])
    database_url: str = ""
    draw: random.Random = field(default_factory=lambda: random.Random(1))
    _postgres: PostgresServer | None = None
    _cluster: LiveCluster | None = None
    _front: ServiceFront | None = None

    @property
    def postgres(self) -> PostgresServer:
        """Its database server."""
        assert self._postgres is not None
        return self._postgres

    @property
    def cluster(self) -> LiveCluster:
        """Its processes."""
        assert self._cluster is not None
        return self._cluster

    def start(self) -> None:
        if self._cluster is None:
            self._start_first()
        for role in ROLES:
            for number in {0, 1} - self.cluster.processes[role].keys():
                self.cluster.start(role, number)
        self.wait_ready()

    def kinds(self) -> Mapping[str, float]:
        return KINDS

    def kill(self, kind: str) -> Callable[[], None]:
        if kind == "connections":
            self.postgres.disconnect_all(self.database_url.rpartition("/")[2])
            return lambda: None
        if kind == "network":
            assert self._front is not None
            self._front.cut()
            return lambda: None
        role, number = self._choose(kind)
        self.cluster.kill(role, number)
        return partial(self.cluster.start, role, number)

    def wait_ready(self) -> None:
        self.cluster.leader()
        self.cluster.wait_for_workers(2)
        self.cluster.wait_until_ready()

    def stop(self) -> None:
        for role in ROLES:
            for number in list(self.cluster.processes[role]):
                status = self.cluster.stop_one(role, number)
                assert status == 0, f"{role} {number} ended with status {status}"

    def destroy(self) -> None:
        if self._front is not None:
            self._front.close()
        if self._cluster is not None:
            for role in ROLES:
                for number in list(self._cluster.processes[role]):
                    self._cluster.kill(role, number)
        if self._postgres is not None:
            self._postgres.stop()

    def open_blobs(self) -> Blobs:
        return DirectoryBlobs(self.cluster.data_dir / "blobs")

    def drafts(self) -> list[str]:
        return drafts_in(self.cluster.data_dir / "blobs")

    def _start_first(self) -> None:
        self._postgres = start_postgres(self.home)
        self.database_url = new_database(self._postgres)
        self._cluster = start_cluster(
            self.model_dir, self.home, self.database_url, config=self.config, source=self.source
        )
        self.keys = dict(zip(TENANTS, self._cluster.keys, strict=True))
        self._front = ServiceFront([int(url.rpartition(":")[2]) for url in self._cluster.urls])
        self.url = self._front.url

    def _choose(self, kind: str) -> tuple[Role, int]:
        if kind in ("leader", "standby"):
            leader = self.cluster.leader()
            return "scheduler", leader if kind == "leader" else 1 - leader
        assert kind in ("gateway", "worker")
        return ("gateway" if kind == "gateway" else "worker"), self.draw.randrange(2)
