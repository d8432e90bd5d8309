"""What is past its time under a clock of our own: rows and bytes on disk."""

import time
from pathlib import Path

from openrl.config import StoreConfig
from openrl.scheduler.housekeeping import Housekeeping
from openrl.store.base import CheckpointRow
from openrl.store.blobs import DirectoryBlobs
from openrl.store.sql import SqlStore, create_store
from tests.store.rows_for_tests import ALICE, BOB, checkpoint, done, request, run, session

HOUR = 3600.0
FILES = {"adapter_model.safetensors": b"w" * 50_000, "openrl.json": b"{}"}
SIZE = sum(map(len, FILES.values()))


def disk_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in (root / "objects").rglob("*") if path.is_file())


async def save(store: SqlStore, blobs: DirectoryBlobs, name: str, expires_at: float | None, seq_id: int) -> None:
    row = checkpoint(name, expires_at=expires_at, size_bytes=blobs.put_object(f"checkpoints/{name}", FILES))
    queued = await store.enqueue(request("saver", seq_id, kind="save_weights"), b"p")
    await store.finish([done(queued.request_id, checkpoint=row)])


async def copy(store: SqlStore, name: str, expires_at: float | None) -> CheckpointRow:
    """Bob's copy of Alice's checkpoint."""
    owner = run("c:train:0", BOB, session_id="c", is_closed=True, copied_from=f"tinker://r1/weights/{name}")
    row = checkpoint(name, BOB, run_id="c:train:0", key=f"checkpoints/{name}", expires_at=expires_at)
    return await store.copy_checkpoint(row, owner, session("c", BOB, state="finished"))


async def test_a_checkpoint_past_its_time_frees_its_bytes_and_shared_ones_go_with_the_last_copy(tmp_path: Path):
    clock = [1000.0]
    blobs = DirectoryBlobs(tmp_path)
    store = await create_store(f"sqlite:///{tmp_path}/store.db", blobs, lambda: clock[0])
    housekeeping = Housekeeping(store, blobs, 300.0, lambda _: None)

    async def listed_and_stored(at: float) -> tuple[int, int, int]:
        clock[0] = at
        await housekeeping.delete_expired_checkpoints(at)
        alices, bobs = await store.list_checkpoints(ALICE, 10, 0), await store.list_checkpoints(BOB, 10, 0)
        return alices.total_count, bobs.total_count, disk_bytes(tmp_path) // SIZE

    await save(store, blobs, "alone", 1000.0 + HOUR, 1)
    await save(store, blobs, "shared", 1000.0 + HOUR, 2)
    await save(store, blobs, "kept", None, 3)
    await copy(store, "shared", 1000.0 + 3 * HOUR)
    assert disk_bytes(tmp_path) == 3 * SIZE
    assert await listed_and_stored(1000.0 + HOUR - 1) == (3, 1, 3)
    assert await listed_and_stored(1000.0 + HOUR) == (1, 1, 2)
    assert await listed_and_stored(1000.0 + 3 * HOUR - 1) == (1, 1, 2)
    assert await listed_and_stored(1000.0 + 3 * HOUR) == (1, 0, 1)
    assert disk_bytes(tmp_path) == SIZE
    await store.close()
    blobs.close()


async def test_files_that_a_killed_server_left_behind_are_freed_by_the_next(tmp_path: Path):
    blobs = DirectoryBlobs(tmp_path)
    url = f"sqlite:///{tmp_path}/store.db"
    store = await create_store(url, blobs, lambda: 0.0)
    await save(store, blobs, "a", None, 1)
    await store.delete_checkpoint(ALICE, "r1", "weights", "a")  # and is killed before it deletes the files
    await store.close()
    assert disk_bytes(tmp_path) == SIZE
    store = await create_store(url, blobs, lambda: 0.0)
    await Housekeeping(store, blobs, 300.0, lambda _: None).delete_expired_checkpoints(0.0)
    assert disk_bytes(tmp_path) == 0
    await store.close()
    blobs.close()


async def test_snapshots_of_closed_runs_are_freed_and_those_of_open_ones_kept(tmp_path: Path):
    blobs = DirectoryBlobs(tmp_path)
    store = await create_store(f"sqlite:///{tmp_path}/store.db", blobs, lambda: 0.0)
    housekeeping = Housekeeping(store, blobs, 300.0, lambda _: None)
    for run_id, tenant_id in (("r1", ALICE), ("r2", BOB)):
        await store.create_run(run(run_id, tenant_id), request(run_id, 0, tenant_id), b"p")
        for seq_id in (3, 7, 9):  # replaced, recorded, and one that is about to be
            blobs.put_object(f"snapshots/{run_id}/{seq_id}", FILES)
        await store.record_snapshot(run_id, 7, f"snapshots/{run_id}/7")
    await save(store, blobs, "kept", None, 1)
    await housekeeping.free_unused_objects(0.0, StoreConfig())
    assert sorted(blobs.list_objects("snapshots/")) == [f"snapshots/{r}/{n}" for r in ("r1", "r2") for n in (7, 9)]
    await store.close_run("r1")
    await housekeeping.free_unused_objects(0.0, StoreConfig())
    assert sorted(blobs.list_objects("snapshots/")) == ["snapshots/r2/7", "snapshots/r2/9"]
    assert blobs.get_object("checkpoints/kept") == FILES
    await store.close()
    blobs.close()


async def test_losses_and_traces_go_when_nobody_has_used_them_for_long(tmp_path: Path):
    blobs = DirectoryBlobs(tmp_path)
    store = await create_store(f"sqlite:///{tmp_path}/store.db", blobs, lambda: 0.0)
    housekeeping = Housekeeping(store, blobs, 300.0, lambda _: None)
    retention = StoreConfig(custom_loss_retention_s=9 * HOUR, trace_retention_s=2 * HOUR)
    for tenant_id, session_id in ((ALICE, "s1"), (BOB, "s2")):
        await store.create_session(session(session_id, tenant_id))
        blobs.put_object(f"custom_losses/{tenant_id}/x", FILES)
        await store.ledger.note_loss_use(f"custom_losses/{tenant_id}/x", tenant_id, session_id, time.time())
    await store.create_run(run("r2", BOB, session_id="s2"), request("r2", 0, BOB), b"p")
    blobs.put_object("traces/s1", FILES)
    for tenant_id, session_id in ((ALICE, "s1"), (BOB, "s2")):
        await store.end_session(tenant_id, session_id, "finished", "")

    async def left(after_s: float) -> list[str]:
        await housekeeping.free_unused_objects(time.time() + after_s, retention)
        return sorted({**blobs.list_objects("custom_losses/"), **blobs.list_objects("traces/")})

    assert await left(HOUR) == ["custom_losses/alice/x", "custom_losses/bob/x", "traces/s1"]
    assert await left(3 * HOUR) == ["custom_losses/alice/x", "custom_losses/bob/x"]
    assert await left(10 * HOUR) == ["custom_losses/bob/x"]  # by a run that goes on
    await store.close_run("r2")
    assert await left(10 * HOUR) == []
    assert await store.ledger.losses_in_use(0.0) == frozenset()
    await store.close()
    blobs.close()


async def test_files_of_a_save_that_came_to_nothing_are_freed_after_a_day(tmp_path: Path):
    blobs = DirectoryBlobs(tmp_path)
    store = await create_store(f"sqlite:///{tmp_path}/store.db", blobs, lambda: 0.0)
    housekeeping = Housekeeping(store, blobs, 300.0, lambda _: None)
    await save(store, blobs, "kept", None, 1)
    blobs.put_object("checkpoints/r1/weights/kept/lost", FILES)

    async def left(after_s: float) -> list[str]:
        await housekeeping.free_unused_objects(time.time() + after_s, StoreConfig())
        return sorted(blobs.list_objects("checkpoints/"))

    assert await left(20 * HOUR) == ["checkpoints/kept", "checkpoints/r1/weights/kept/lost"]
    assert await left(25 * HOUR) == ["checkpoints/kept"]
    await store.close()
    blobs.close()
