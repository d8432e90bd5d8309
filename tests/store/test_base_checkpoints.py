"""The contract of `store/base.py`, held in memory and over SQL: checkpoints and pruning."""

import pytest

from openrl.errors import NotFound
from openrl.store.base import CheckpointRow, Store
from openrl.store.blobs import DirectoryBlobs
from tests.store.conftest import NOW
from tests.store.expectations import refused_as, start_run
from tests.store.rows_for_tests import ALICE, BOB, checkpoint, done, request, sample, sampler


# -- pruning
async def test_pruning_frees_the_bytes_of_what_nobody_can_ask_for(store: Store, pair_blobs: DirectoryBlobs):
    row = await store.enqueue(sample("p", 1), b"x" * 500)
    young = await store.enqueue(sample("p", 2, BOB), b"y" * 50)
    assert await store.prune(100.0) == 0
    old_ref, young_ref = pair_blobs.put_payloads([b"r" * 300])[0], pair_blobs.put_payloads([b"q" * 30])[0]
    await store.finish([done(row.request_id, result_ref=old_ref, finished_at=10.0)])
    await store.finish([done(young.request_id, result_ref=young_ref, finished_at=20.0)])
    assert await store.prune(20.0) == 850
    for ref in (row.payload_ref, young.payload_ref, old_ref):
        with pytest.raises(NotFound):
            pair_blobs.get_payload(ref)
    assert pair_blobs.get_payload(young_ref) == b"q" * 30
    pruned = await store.wait_finished(ALICE, row.request_id, 0.0)
    assert pruned is not None
    assert (pruned.state, pruned.result_ref, pruned.payload_ref) == ("done", "", "")
    assert await store.prune(20.5) == 30


async def test_a_training_payload_stays_until_a_snapshot_covers_it_or_the_run_is_closed(
    store: Store, pair_blobs: DirectoryBlobs
):
    await start_run(store)
    await start_run(store, "r2", BOB)
    rows = [await store.enqueue(request("r1", n), b"p" * 10**n) for n in (1, 2, 3)]
    other = await store.enqueue(request("r2", 1, BOB), b"q" * 7)
    await store.finish([done(f"alice-r1-{n}", result_ref="") for n in (0, 1, 2)])
    await store.finish([done("bob-r2-0", result_ref=""), done("bob-r2-1", result_ref="")])
    assert await store.prune(NOW) == 0
    await store.record_snapshot("r1", 1, "runs/r1/1")
    assert await store.prune(NOW) == len(b"create") + 10
    assert pair_blobs.get_payload(rows[1].payload_ref) == b"p" * 100
    await store.close_run("r1")
    assert await store.prune(NOW) == 100
    assert pair_blobs.get_payload(rows[2].payload_ref) == b"p" * 1000
    assert pair_blobs.get_payload(other.payload_ref) == b"q" * 7


# -- checkpoints
async def save(store: Store, row: CheckpointRow, seq_id: int, tenant_id: str = ALICE) -> None:
    queued = await store.enqueue(request("saver", seq_id, tenant_id, kind="save_weights"), b"p")
    await store.finish([done(queued.request_id, checkpoint=row)])


async def test_a_checkpoint_replaces_one_of_the_same_run_kind_and_name(store: Store):
    await save(store, checkpoint("a", user_metadata={"x": "1"}, is_public=True), 1)
    await save(store, checkpoint("a", kind="sampler_weights"), 2)
    await save(store, checkpoint("a", key="new", size_bytes=9), 3)
    assert await store.get_checkpoint(ALICE, "r1", "weights", "a") == checkpoint("a", key="new", size_bytes=9)
    assert (await store.list_checkpoints(ALICE, 10, 0)).total_count == 2


async def test_checkpoints_of_another_tenant_are_not_found_unless_public_and_never_writable(store: Store):
    await save(store, checkpoint("a"), 1)
    for call in (store.get_checkpoint, store.delete_checkpoint, store.update_checkpoint):
        await refused_as(call(BOB, "r1", "weights", "a"), NotFound)
    await store.update_checkpoint(ALICE, "r1", "weights", "a", is_public=True)
    assert (await store.get_checkpoint(BOB, "r1", "weights", "a")).is_public
    assert (await store.list_checkpoints(BOB, 10, 0)).items == ()
    await refused_as(store.delete_checkpoint(BOB, "r1", "weights", "a"), NotFound)
    await refused_as(store.update_checkpoint(BOB, "r1", "weights", "a", is_public=False), NotFound)
    await store.update_checkpoint(ALICE, "r1", "weights", "a", is_public=False)
    await refused_as(store.get_checkpoint(BOB, "r1", "weights", "a"), NotFound)


async def test_an_expired_checkpoint_is_found_only_by_the_clean_up(store: Store):
    await save(store, checkpoint("a", expires_at=NOW), 1)
    await save(store, checkpoint("b", BOB, run_id="r2", expires_at=NOW - 5, is_public=True), 2, BOB)
    await save(store, checkpoint("c", expires_at=NOW + 1), 3)
    await refused_as(store.get_checkpoint(ALICE, "r1", "weights", "a"), NotFound)
    await refused_as(store.get_checkpoint(ALICE, "r2", "weights", "b"), NotFound)
    await refused_as(store.update_checkpoint(ALICE, "r1", "weights", "a", expires_at="never"), NotFound)
    assert [row.name for row in (await store.list_checkpoints(ALICE, 10, 0)).items] == ["c"]
    assert [row.name for row in await store.delete_expired_checkpoints(NOW)] == ["b", "a"]
    assert await store.delete_expired_checkpoints(NOW) == ()
    await refused_as(store.delete_checkpoint(ALICE, "r1", "weights", "a"), NotFound)
    assert [row.name for row in await store.delete_expired_checkpoints(NOW + 1)] == ["c"]


async def test_an_expired_checkpoint_can_be_deleted_by_its_tenant_before_the_clean_up(store: Store):
    await save(store, checkpoint("a", expires_at=NOW), 1)
    assert (await store.delete_checkpoint(ALICE, "r1", "weights", "a")).name == "a"
    assert await store.delete_expired_checkpoints(NOW) == ()


async def test_updating_a_checkpoint_changes_what_is_given_only(store: Store):
    await save(store, checkpoint("a", is_public=True, expires_at=NOW + 9), 1)
    updated = await store.update_checkpoint(ALICE, "r1", "weights", "a", expires_at=NOW + 50)
    assert (updated.is_public, updated.expires_at) == (True, NOW + 50)
    updated = await store.update_checkpoint(ALICE, "r1", "weights", "a", expires_at="never")
    assert updated == checkpoint("a", is_public=True)
    assert await store.update_checkpoint(ALICE, "r1", "weights", "a") == updated
    assert await store.get_checkpoint(ALICE, "r1", "weights", "a") == updated
    await refused_as(store.update_checkpoint(ALICE, "r1", "weights", "b"), NotFound)


async def test_checkpoints_are_listed_newest_first_and_by_run(store: Store):
    for n, (name, run_id) in enumerate((("a", "r1"), ("b", "r2"), ("c", "r1"))):
        await save(store, checkpoint(name, run_id=run_id, created_at=float(n)), n)
    page = await store.list_checkpoints(ALICE, 2, 0)
    assert ([row.name for row in page.items], page.total_count) == (["c", "b"], 3)
    page = await store.list_checkpoints(ALICE, 10, 1, run_id="r1")
    assert ([row.name for row in page.items], page.total_count) == (["a"], 2)


async def test_a_deleted_checkpoint_is_returned_and_gone(store: Store):
    await save(store, checkpoint("a"), 1)
    assert await store.delete_checkpoint(ALICE, "r1", "weights", "a") == checkpoint("a")
    await refused_as(store.delete_checkpoint(ALICE, "r1", "weights", "a"), NotFound)


async def test_objects_in_use_are_those_of_checkpoints_and_samplers_of_all_tenants(store: Store):
    await save(store, checkpoint("a", key="k1"), 1)
    await store.create_sampler(sampler("p2", BOB, adapter_key="k2"))
    assert await store.objects_in_use([f"k{i}" for i in range(1, 1200)]) == {"k1", "k2"}
    assert await store.objects_in_use([]) == frozenset()
