"""The contract of `store/base.py`, held in memory and over SQL: files that checkpoints share, and their end."""

from typing import Any

import pytest

from openrl.errors import InvalidRequest, NotFound
from openrl.store.base import CheckpointRow, RunRow, SessionRow, Store
from openrl.store.blobs import DirectoryBlobs
from openrl.store.doomed import free_doomed_objects
from tests.store.conftest import NOW
from tests.store.expectations import refused_as, start_run
from tests.store.rows_for_tests import ALICE, BOB, checkpoint, done, request, run, session

SOURCE = "tinker://r1/weights/a"


async def save(store: Store, row: CheckpointRow, seq_id: int, **fields: Any) -> str:
    """Finish a save; returns the state that its request has then."""
    queued = await store.enqueue(request("saver", seq_id, kind="save_weights"), b"p")
    await store.finish([done(queued.request_id, checkpoint=row, **fields)])
    return (await store.get_request(ALICE, queued.request_id)).state


def copy_of(
    n: int, tenant_id: str = BOB, key: str | None = None, source: str = SOURCE, **fields: Any
) -> tuple[CheckpointRow, RunRow, SessionRow]:
    made = session(f"c{n}", tenant_id, state="finished", idempotency_key=key)
    owner = run(f"c{n}:train:0", tenant_id, session_id=f"c{n}", is_closed=True, copied_from=source)
    return checkpoint("a", tenant_id, run_id=owner.spec.run_id, **fields), owner, made


# -- names
async def test_a_save_that_must_not_replace_fails_where_its_name_is_taken_by_then(store: Store):
    assert await save(store, checkpoint("a", key="k1"), 1, may_replace=False) == "done"
    assert await save(store, checkpoint("a", key="k2"), 2, may_replace=False) == "failed"
    refused = await store.get_request(ALICE, "alice-saver-2")
    assert "tinker://r1/weights/a exists already" in refused.error
    assert (refused.category, refused.result_ref) == ("user", "")
    assert (await store.get_checkpoint(ALICE, "r1", "weights", "a")).key == "k1"
    assert await store.doomed_objects() == ("k2",)


async def test_of_two_saves_that_end_together_under_one_name_the_first_stands(store: Store):
    rows = [await store.enqueue(request("saver", n, kind="save_weights"), b"p") for n in (1, 2)]
    saves = [checkpoint("a", key=f"k{n}") for n in (1, 2)]
    ends = [done(row.request_id, checkpoint=c, may_replace=False) for row, c in zip(rows, saves, strict=True)]
    await store.finish(ends)
    assert [(await store.get_request(ALICE, row.request_id)).state for row in rows] == ["done", "failed"]
    assert (await store.get_checkpoint(ALICE, "r1", "weights", "a")).key == "k1"


async def test_the_name_of_an_expired_checkpoint_is_free(store: Store):
    await save(store, checkpoint("a", key="k1", expires_at=NOW), 1)
    assert await save(store, checkpoint("a", key="k2"), 2, may_replace=False, finished_at=NOW + 1) == "done"
    assert await store.doomed_objects() == ("k1",)


# -- copies
async def test_a_copy_is_another_tenants_own_and_shares_the_files(store: Store):
    await save(store, checkpoint("a"), 1)
    copy, owner, made = copy_of(1)
    assert await store.copy_checkpoint(copy, owner, made) == copy
    assert await store.get_checkpoint(BOB, "c1:train:0", "weights", "a") == copy
    assert await store.get_run(BOB, "c1:train:0") == owner
    assert await store.get_session(BOB, "c1") == made
    assert await store.live_runs() == ()
    await refused_as(store.get_checkpoint(ALICE, "c1:train:0", "weights", "a"), NotFound)


async def test_a_repeated_copy_is_the_first(store: Store):
    await save(store, checkpoint("a"), 1)
    first = await store.copy_checkpoint(*copy_of(1, key="retry"))
    assert await store.copy_checkpoint(*copy_of(2, key="retry")) == first
    assert (await store.list_runs(BOB, 10, 0)).total_count == 1
    assert (await store.list_sessions(BOB, 10, 0)).total_count == 1
    await refused_as(store.copy_checkpoint(*copy_of(2, key="retry", source="tinker://r2/weights/b")), InvalidRequest)
    assert (await store.copy_checkpoint(*copy_of(3, ALICE, key="retry"))).run_id == "c3:train:0"


async def test_a_copy_into_a_session_takes_a_number_that_no_other_run_has(store: Store):
    await save(store, checkpoint("a"), 1)
    await start_run(store, "r7", BOB)
    copy, owner, _ = copy_of(1)
    in_session = await store.copy_checkpoint(copy, owner, None)
    assert await store.copy_checkpoint(copy, owner, None) == in_session
    taken = run("r8", BOB, session_id="r7-session", copied_from=SOURCE)
    await refused_as(store.copy_checkpoint(checkpoint("a", BOB, run_id="r8"), taken, None), InvalidRequest)


async def test_the_idempotency_key_of_a_session_is_not_that_of_a_copy(store: Store):
    await save(store, checkpoint("a"), 1)
    await store.create_session(session("s9", BOB, idempotency_key="k"))
    await refused_as(store.copy_checkpoint(*copy_of(1, key="k")), InvalidRequest)


async def test_what_is_gone_cannot_be_copied_and_leaves_nothing_behind(store: Store):
    await save(store, checkpoint("a"), 1)
    await store.delete_checkpoint(ALICE, "r1", "weights", "a")
    await refused_as(store.copy_checkpoint(*copy_of(1)), NotFound)
    await refused_as(store.get_session(BOB, "c1"), NotFound)
    await refused_as(store.get_run(BOB, "c1:train:0"), NotFound)


# -- the files
@pytest.mark.parametrize("end", ["deleted", "expired", "replaced"])
async def test_shared_files_go_with_the_last_checkpoint_that_has_them(
    store: Store, pair_blobs: DirectoryBlobs, end: str
):
    pair_blobs.put_object("checkpoints/a", {"f": b"12345"})
    await save(store, checkpoint("a", expires_at=NOW + 10), 1)
    await store.copy_checkpoint(*copy_of(1, expires_at=NOW + 50))
    if end == "deleted":
        await store.delete_checkpoint(ALICE, "r1", "weights", "a")
    elif end == "expired":
        assert [row.run_id for row in await store.delete_expired_checkpoints(NOW + 10)] == ["r1"]
    else:
        await save(store, checkpoint("a", key="new"), 2)
    assert await free_doomed_objects(store, pair_blobs) == 0
    assert pair_blobs.get_object("checkpoints/a") == {"f": b"12345"}
    await store.delete_expired_checkpoints(NOW + 50)
    assert await store.doomed_objects() == ("checkpoints/a",)
    assert await store.doomed_objects("another") == ()
    assert await free_doomed_objects(store, pair_blobs, "checkpoints/a") == 5
    assert await store.doomed_objects() == ()
    with pytest.raises(NotFound):
        pair_blobs.get_object("checkpoints/a")


@pytest.mark.parametrize("end", ["covered by a snapshot", "closed"])
async def test_files_that_a_replay_would_read_stay(store: Store, pair_blobs: DirectoryBlobs, end: str):
    pair_blobs.put_object("checkpoints/a", {"f": b"12345"})
    await save(store, checkpoint("a"), 1)
    load = request("loader", 0, BOB, kind="load_weights", object_key="checkpoints/a")
    _, load = await store.create_run(run("loader", BOB), load, b"p")
    await store.delete_checkpoint(ALICE, "r1", "weights", "a")
    assert await free_doomed_objects(store, pair_blobs) == 0  # it has not run
    await store.finish([done(load.request_id)])
    assert await free_doomed_objects(store, pair_blobs) == 0  # it would run again
    if end == "closed":
        await store.close_run("loader")
    else:
        await store.record_snapshot("loader", 0, "snapshots/loader/0")
    assert await free_doomed_objects(store, pair_blobs) == 5


async def test_a_failed_request_keeps_no_files(store: Store, pair_blobs: DirectoryBlobs):
    pair_blobs.put_object("checkpoints/a", {"f": b"12345"})
    await save(store, checkpoint("a"), 1)
    await start_run(store, "r2")
    load = await store.enqueue(request("r2", 1, kind="load_weights", object_key="checkpoints/a"), b"p")
    await store.delete_checkpoint(ALICE, "r1", "weights", "a")
    assert await free_doomed_objects(store, pair_blobs) == 0
    await store.finish([done(load.request_id, state="failed", error="no", category="user")])
    assert await free_doomed_objects(store, pair_blobs) == 5


async def test_files_that_cannot_be_deleted_are_deleted_later(
    store: Store, pair_blobs: DirectoryBlobs, monkeypatch: pytest.MonkeyPatch
):
    pair_blobs.put_object("checkpoints/a", {"f": b"12345"})
    await save(store, checkpoint("a"), 1)
    await store.delete_checkpoint(ALICE, "r1", "weights", "a")

    def refuse(key: str) -> int:
        raise OSError("no")

    with monkeypatch.context() as patched:
        patched.setattr(pair_blobs, "delete_object", refuse)
        assert await free_doomed_objects(store, pair_blobs) == 0
    assert await free_doomed_objects(store, pair_blobs) == 5
