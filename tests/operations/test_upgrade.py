"""Old and new version side by side on one PostgreSQL: every process is exchanged, and clients notice nothing."""

import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from bench.crash_cluster import ClusterInstallation
from bench.crash_serve import CONFIG, ServeInstallation

from tests.faults.loads import expect_only_delay
from tests.live_cluster import Role
from tests.live_server import openrl

OLD = "fb8d30b0970344ac4de93f5432111cd9731f43be"
"""The first version of many processes over PostgreSQL."""
ROOT = Path(__file__).parents[2]
QUICK = (
    CONFIG
    + """
[gateway]
drain_delay_s = 1
"""
).replace("[scheduler]", "[scheduler]\nlease_s = 4\nworker_silence_s = 20")
ORDERS: dict[str, tuple[Role, ...]] = {
    "decisions_first": ("scheduler", "gateway", "worker"),
    "work_first": ("worker", "gateway", "scheduler"),
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def old_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it was, out of the repository's history."""
    if git("rev-parse", "--is-shallow-repository").strip() == b"true" and not has(OLD):
        pytest.skip(f"a shallow clone, whose history does not reach {OLD}: git fetch --unshallow")
    assert has(OLD), f"the history has no commit {OLD}: OLD is to name one that it has"
    archive = git("archive", OLD, "src")
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder / "src"


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout


def has(commit: str) -> bool:
    found = subprocess.run(
        ["git", "cat-file", "-e", f"{commit}^{{commit}}"], cwd=ROOT, capture_output=True, check=False
    )
    return found.returncode == 0


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_a_rolling_upgrade_loses_no_request(
    order: tuple[Role, ...], tiny_model_dir: Path, tmp_path: Path, old_source: Path
):
    def upgrade(installation: ClusterInstallation) -> None:
        cluster = installation.cluster
        migrated = openrl("migrate", settings=cluster.settings)
        assert migrated.returncode == 0, migrated.stderr
        cluster.source = None
        for role in order:
            for number in (0, 1):
                assert cluster.stop_one(role, number) == 0
                cluster.start(role, number)
                installation.wait_ready()

    old = ClusterInstallation(tiny_model_dir, tmp_path / "upgraded", QUICK, old_source)
    expect_only_delay(old, ServeInstallation(tiny_model_dir, tmp_path / "twin"), upgrade)
