"""The contract of `store/base.py`, held in memory and over SQL: sessions, runs, samplers."""

import asyncio
from dataclasses import replace

from openrl.errors import InvalidRequest, NotFound, SessionEnded
from openrl.store.base import Store
from openrl.store.blobs import DirectoryBlobs
from tests.store.expectations import refused_as, start_run
from tests.store.rows_for_tests import ALICE, BOB, checkpoint, request, run, sampler, session


# -- sessions
async def test_a_session_comes_back_as_it_was_stored(store: Store):
    row = session("s1", tags=("a", "b"), user_metadata={"x": [1, None]}, display_name="d", project_id="p")
    assert await store.create_session(row) == row
    assert await store.get_session(ALICE, "s1") == row


async def test_a_session_with_a_repeated_idempotency_key_is_the_first_one(store: Store):
    first = await store.create_session(session("s1", idempotency_key="k"))
    assert await store.create_session(session("s2", idempotency_key="k")) == first
    bobs = await store.create_session(session("s3", BOB, idempotency_key="k"))
    assert bobs.session_id == "s3"
    await store.create_session(session("s4"))
    await store.create_session(session("s5"))
    assert (await store.list_sessions(ALICE, 10, 0)).total_count == 3


async def test_sessions_of_another_tenant_are_not_found(store: Store):
    await store.create_session(session("s1"))
    missing = await refused_as(store.get_session(BOB, "s9"), NotFound)
    assert await refused_as(store.get_session(BOB, "s1"), NotFound) == missing.replace("s9", "s1")
    await refused_as(store.heartbeat(BOB, "s1", 5.0), NotFound)
    await refused_as(store.end_session(BOB, "s1", "finished", "success"), NotFound)
    assert (await store.list_sessions(BOB, 10, 0)).items == ()
    await refused_as(store.create_session(session("s1", BOB)), InvalidRequest)
    assert (await store.get_session(ALICE, "s1")).tenant_id == ALICE


async def test_sessions_are_listed_newest_first_in_pages(store: Store):
    for n in range(5):
        await store.create_session(session(f"s{n}", created_at=float(n // 2)))
        await store.create_session(session(f"b{n}", BOB))
    page = await store.list_sessions(ALICE, 2, 1)
    assert [row.session_id for row in page.items] == ["s3", "s2"]
    assert page.total_count == 5


async def test_the_first_end_of_a_session_wins_and_stops_its_heartbeats(store: Store):
    await store.create_session(session("s1"))
    await store.heartbeat(ALICE, "s1", 7.0)
    await store.end_session(ALICE, "s1", "finished", "success")
    await store.end_session(ALICE, "s1", "expired", "silent")
    await refused_as(store.heartbeat(ALICE, "s1", 8.0), SessionEnded)
    row = await store.get_session(ALICE, "s1")
    assert (row.state, row.end_reason, row.last_heartbeat_at) == ("finished", "success", 7.0)


async def test_ending_a_session_leaves_its_runs_alone(store: Store):
    await store.create_session(session("r1-session"))
    await start_run(store)
    await store.end_session(ALICE, "r1-session", "expired", "silent")
    assert not (await store.get_run(ALICE, "r1")).is_closed


async def test_silent_sessions_of_all_tenants_are_those_active_without_a_heartbeat(store: Store):
    for name, tenant, beat in (("s1", ALICE, 5.0), ("s2", BOB, 4.0), ("s3", ALICE, 6.0), ("s4", BOB, 1.0)):
        await store.create_session(session(name, tenant, last_heartbeat_at=beat))
    await store.end_session(BOB, "s4", "finished", "success")
    assert [row.session_id for row in await store.sessions_silent_since(6.0)] == ["s2", "s1"]


# -- runs
async def test_a_run_and_its_first_request_come_back_as_stored(store: Store, pair_blobs: DirectoryBlobs):
    stored, first = await store.create_run(run("r1", user_metadata={"a": 1}), request("r1", 0), b"create")
    assert stored == run("r1", user_metadata={"a": 1}, last_request_at=2.0)
    assert await store.get_run(ALICE, "r1") == stored
    assert await store.get_request(ALICE, first.request_id) == first
    assert pair_blobs.get_payload(first.payload_ref) == b"create"


async def test_a_repeated_creation_of_a_run_returns_the_first_run_and_request(store: Store):
    created = await store.create_run(run("r1"), request("r1", 0), b"create")
    retried = replace(run("r1"), created_at=9.0)
    assert await store.create_run(retried, request("r1", 0, request_id="other"), b"again") == created
    assert (await store.list_runs(ALICE, 10, 0)).total_count == 1
    await refused_as(store.get_request(ALICE, "other"), NotFound)


async def test_simultaneous_creations_of_one_run_agree(store: Store):
    tries = [store.create_run(run("r1"), request("r1", 0, request_id=f"q{n}"), b"c") for n in range(5)]
    assert len({answer[1].request_id for answer in await asyncio.gather(*tries)}) == 1


async def test_a_run_that_cannot_be_stored_leaves_no_request_behind(store: Store):
    await start_run(store)
    other = run("r1", BOB, session_id="elsewhere")
    await refused_as(store.create_run(other, request("r1", 0, BOB, request_id="q"), b"c"), InvalidRequest)
    await refused_as(store.get_request(BOB, "q"), NotFound)
    taken = request("r2", 0, request_id="alice-r1-0")
    await refused_as(store.create_run(run("r2"), taken, b"c"), InvalidRequest)
    await refused_as(store.get_run(ALICE, "r2"), NotFound)


async def test_runs_of_another_tenant_are_not_found(store: Store):
    await start_run(store)
    await start_run(store, "r2", BOB)
    await refused_as(store.get_run(BOB, "r1"), NotFound)
    assert [row.spec.run_id for row in (await store.list_runs(BOB, 10, 0)).items] == ["r2"]
    assert await store.runs_of_session(BOB, "r1-session") == ()


async def test_runs_are_listed_newest_first_and_by_session_in_its_order(store: Store):
    for n in (1, 0, 2):
        row = run(f"r{n}", session_id="s", model_seq_id=n, created_at=float(n))
        await store.create_run(row, request(f"r{n}", 0), b"c")
    page = await store.list_runs(ALICE, 2, 0)
    assert ([row.spec.run_id for row in page.items], page.total_count) == (["r2", "r1"], 3)
    assert [row.model_seq_id for row in await store.runs_of_session(ALICE, "s")] == [0, 1, 2]


async def test_a_closed_run_is_not_live_and_takes_no_more_requests(store: Store):
    await start_run(store)
    await start_run(store, "r2", BOB)
    queued = await store.enqueue(request("r1", 1), b"p")
    await store.close_run("r1")
    await store.close_run("r1")
    assert [row.spec.run_id for row in await store.live_runs()] == ["r2"]
    await refused_as(store.enqueue(request("r1", 2), b"p"), SessionEnded)
    await refused_as(store.enqueue(request("r1", 3, state="failed", error="bad"), b"p"), SessionEnded)
    assert await store.enqueue(request("r1", 1), b"retried") == queued
    assert (await store.enqueue(request("r2", 1, BOB), b"p")).state == "queued"
    await refused_as(store.close_run("r9"), NotFound)


async def test_the_last_state_of_a_run_is_kept_by_the_first_close_alone(store: Store):
    await start_run(store)
    kept = checkpoint("expired-000007", key="checkpoints/r1/weights/expired-000007", created_at=20.0)
    await store.close_run("r1", kept)
    await store.close_run("r1", replace(kept, name="again"))
    assert (await store.list_checkpoints(ALICE, 10, 0)).items == (kept,)
    assert (await store.list_checkpoints(BOB, 10, 0)).items == ()
    await refused_as(store.close_run("r9", kept), NotFound)


async def test_a_snapshot_moves_only_forward(store: Store):
    await start_run(store)
    await store.record_snapshot("r1", 4, "runs/r1/4")
    await store.record_snapshot("r1", 3, "runs/r1/3")
    row = await store.get_run(ALICE, "r1")
    assert (row.snapshot_seq_id, row.snapshot_key) == (4, "runs/r1/4")
    await refused_as(store.record_snapshot("r9", 1, "x"), NotFound)


# -- samplers
async def test_a_repeated_sampler_is_the_first_one_and_belongs_to_its_tenant(store: Store):
    row = sampler("p1", model_path="tinker://r1/weights/a", adapter_key="k", is_ephemeral=True)
    assert await store.create_sampler(row) == row
    assert await store.create_sampler(sampler("p2")) == row
    assert await store.get_sampler(ALICE, "p1") == row
    await refused_as(store.get_sampler(BOB, "p1"), NotFound)
    bobs = await store.create_sampler(sampler("p3", BOB))
    assert await store.samplers_of_session(BOB, "s1") == (bobs,)
    later = await store.create_sampler(sampler("p0", sampling_session_seq_id=10**18 + 1))
    assert await store.samplers_of_session(ALICE, "s1") == (row, later)
