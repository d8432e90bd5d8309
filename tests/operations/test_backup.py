"""A backup as docs/operations.md says it: the database first, then the files; restored where there was nothing."""

import gc
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import tinker

from openrl.store.base import Store
from openrl.store.blobs import DirectoryBlobs
from openrl.store.sql import create_store
from tests.contracts.loops import TEXT, connect, new_run, resume, sample, snapshot, train
from tests.live_cluster import ROLES, LiveCluster, start_cluster
from tests.postgres import PostgresServer, new_database
from tests.store.expectations import start_run
from tests.store.rows_for_tests import ALICE, BOB, checkpoint, done, request, run

SETTINGS = {"OPENRL_SCHEDULER__LEASE_S": "4", "OPENRL_SCHEDULER__MAX_REPLAY_S": "0.05"}


def dump(server: PostgresServer, url: str, file: Path) -> None:
    subprocess.run(
        [server.binaries / "pg_dump", "--format=custom", f"--file={file}", url], check=True, capture_output=True
    )


def restore(server: PostgresServer, file: Path) -> str:
    """The URL of a new database with what the dump holds."""
    url = new_database(server)
    command = [server.binaries / "pg_restore", "--no-owner", "--exit-on-error", f"--dbname={url}", file]
    subprocess.run(command, check=True, capture_output=True)
    return url


async def test_rows_and_files_come_back_and_work_goes_on(postgres: PostgresServer, tmp_path: Path):
    url, backup = new_database(postgres), tmp_path / "backup"
    backup.mkdir()
    blobs = DirectoryBlobs(tmp_path / "blobs")
    store = await create_store(url, blobs)
    await start_run(store)
    await store.create_run(run("r2", BOB), request("r2", 0, BOB), b"create")
    blobs.put_object("checkpoints/a", {"adapter": b"\x00\x01"})
    (ref,) = blobs.put_payloads([b"made"])
    await store.finish([done("alice-r1-0", result_ref=ref, checkpoint=checkpoint("a"))])
    waiting = await store.enqueue(request("r1", 1), b"payload")
    dump(postgres, url, backup / "rows")
    shutil.copytree(tmp_path / "blobs", backup / "blobs")
    await store.enqueue(request("r1", 2), b"too late")
    await store.close()
    blobs.close()

    files = DirectoryBlobs(backup / "blobs")
    restored = await create_store(restore(postgres, backup / "rows"), files, migrates=False)
    assert await in_order(restored) == [waiting.request_id, "bob-r2-0"]
    assert files.get_payload((await restored.get_request(ALICE, "alice-r1-0")).result_ref) == b"made"
    assert files.get_payload(waiting.payload_ref) == b"payload"
    assert files.get_object((await restored.get_checkpoint(ALICE, "r1", "weights", "a")).key) == {
        "adapter": b"\x00\x01"
    }
    assert (await restored.enqueue(request("r1", 2), b"again")).position > waiting.position
    await restored.close()
    files.close()


async def in_order(store: Store) -> list[str]:
    async for rows in store.new_requests():
        return sorted(row.request_id for row in rows)
    return []


@pytest.fixture
def cluster(tiny_model_dir: Path, postgres: PostgresServer, tmp_path: Path) -> Iterator[LiveCluster]:
    live = start_cluster(
        tiny_model_dir,
        tmp_path / "cluster",
        new_database(postgres),
        gateways=1,
        schedulers=1,
        workers=1,
        settings=SETTINGS,
    )
    yield live
    live.stop()
    gc.collect()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cluster_is_restored_into_an_empty_one_and_runs_go_on(
    cluster: LiveCluster, postgres: PostgresServer, tmp_path: Path
):
    with connect(cluster.urls[0], cluster.keys[0]) as service:
        undisturbed = train(new_run(service), 6)
        disturbed = new_run(service)
        assert train(disturbed, 3) == undisturbed[:3]
        path = disturbed.save_state("kept").result().path
        expected = sample(snapshot(disturbed, "kept"), TEXT)
        cluster.stop_one("scheduler", 0)  # nothing is deleted meanwhile; clients wait
        dump(postgres, cluster.settings["OPENRL_STORE__URL"], tmp_path / "rows")
        shutil.copytree(cluster.data_dir / "blobs", tmp_path / "elsewhere" / "data" / "blobs")
        for role in ROLES:
            for number in list(cluster.processes[role]):
                cluster.kill(role, number)
        postgres.execute(f"DROP DATABASE {cluster.settings['OPENRL_STORE__URL'].rpartition('/')[2]} WITH (FORCE)")
        shutil.rmtree(cluster.directory / "data")

        cluster.directory = tmp_path / "elsewhere"
        (cluster.directory / "openrl.toml").write_text("")
        cluster.settings = {**cluster.settings, "OPENRL_STORE__URL": restore(postgres, tmp_path / "rows")}
        for role in ROLES:
            cluster.start(role, 0)
        cluster.wait_until_ready()
        assert train(disturbed, 3, first=3) == undisturbed[3:]  # the same client, over the outage
        loaded = resume(service, path)
        assert sample(snapshot(loaded, "loaded"), TEXT) == expected
        assert train(loaded, 3, first=3) == undisturbed[3:]
    with connect(cluster.urls[0], cluster.keys[1]) as stranger, pytest.raises(tinker.NotFoundError):
        resume(stranger, path)
