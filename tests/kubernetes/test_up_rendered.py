"""Every pod of the rendered chart resolves on one machine, without being started."""

import asyncio
from pathlib import Path

import pytest

from openrl.cluster.chart import find_chart, render
from openrl.cluster.gpus import GpuPool
from openrl.cluster.made_secrets import add_missing
from openrl.cluster.manifests import read_manifests
from openrl.cluster.networks import Loopback
from openrl.cluster.plans import PodPlan, pods_of
from openrl.cluster.pod_parts import Machine, resolve
from openrl.cluster.pod_runner import PodParts
from openrl.cluster.services import Services
from openrl.config import load_config
from openrl.errors import InvalidRequest
from tests.kubernetes.up_cluster import outside

VALUES = """
postgres: {enabled: true}
models: [{name: tiny, path: /cache/tiny}]
modelCache: {kind: pvc, existingClaim: models}
"""


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, PodParts]:
    values = tmp_path / "values.yaml"
    values.write_text(VALUES)
    manifests = read_manifests([render(find_chart(), [values], "openrl", "team")])
    add_missing(manifests, tmp_path / "secrets.json")
    plans: dict[str, tuple[PodPlan, str]] = {}

    async def _resolve() -> dict[str, PodParts]:
        network = Loopback()
        services = Services(manifests, network, "team", plans, {})
        for workload in manifests.runnables:
            for plan in pods_of(workload, 0):
                plans[plan.name] = (plan, await network.add_pod())
        for service in manifests.services:
            services.addresses[service.metadata.name] = await network.add_service()
        network.set_names(services.names())
        machine = Machine(manifests, network, "team", tmp_path, outside(), GpuPool(()))
        found = {name: resolve(plan, address, machine) for name, (plan, address) in plans.items()}
        await network.close()
        return found

    return asyncio.run(_resolve())


def test_every_component_has_its_command_and_its_configuration_can_be_read(parts: dict[str, PodParts]):
    commands = {name: " ".join(next(iter(each.programs.values())).argv[3:5]) for name, each in parts.items()}
    assert commands["openrl-gateway-0"] == "gateway --config"
    assert commands["openrl-scheduler-0"] == "scheduler --config"
    assert commands["openrl-pool-default-0"] == "worker --config"
    assert any(command.startswith("migrate") for command in commands.values())
    for name in ("openrl-gateway-0", "openrl-scheduler-0", "openrl-pool-default-0"):
        (program,) = parts[name].programs.values()
        mounts = {mount.target: mount.source for mount in program.mounts}
        config = load_config(mounts["/etc/openrl"] / "openrl.toml")
        assert config.gateway.host == parts[name].address
        assert config.data_dir == mounts["/var/lib/openrl"]
        assert config.store.blobs_url == f"file://{mounts['/blobs']}"
        assert config.rpc.address.startswith("tcp:127.0.")
        assert program.env["POD_NAME"] == name


def test_the_database_is_found_by_its_name_with_the_password_that_was_made_up(parts: dict[str, PodParts]):
    (gateway,), (postgres,) = (parts[name].programs.values() for name in ("openrl-gateway-0", "openrl-postgres-0"))
    password = postgres.env["POSTGRES_PASSWORD"]
    assert gateway.env["OPENRL_STORE__URL"].startswith(f"postgresql://openrl:{password}@openrl-postgres.team.svc:5432/")


def test_values_that_the_chart_refuses_are_named(tmp_path: Path):
    (tmp_path / "values.yaml").write_text("gateway: {replicaas: 2}\n")
    with pytest.raises(InvalidRequest, match="replicaas"):
        render(find_chart(), [tmp_path / "values.yaml"], "openrl", "team")
