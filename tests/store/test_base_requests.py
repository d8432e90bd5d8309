"""The contract of `store/base.py`, held in memory and over SQL: requests."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from openrl.errors import InvalidRequest, NotFound, Unavailable
from openrl.store.base import RequestRow, SamplerRow, Store
from openrl.store.blobs import DirectoryBlobs
from tests.store.expectations import refused_as, start_run
from tests.store.rows_for_tests import ALICE, BOB, checkpoint, done, request, run, sample, sampler, session


async def test_a_request_and_its_payload_are_kept(store: Store, pair_blobs: DirectoryBlobs):
    row = await store.enqueue(request("r1", 1, num_sequences=3, base_model="tiny"), b"payload")
    assert row == replace(
        request("r1", 1, num_sequences=3, base_model="tiny"), position=row.position, payload_ref=row.payload_ref
    )
    assert await store.get_request(ALICE, row.request_id) == row
    assert pair_blobs.get_payload(row.payload_ref) == b"payload"
    await refused_as(store.get_request(BOB, row.request_id), NotFound)


async def test_a_repeated_request_is_the_first_one(store: Store, pair_blobs: DirectoryBlobs):
    first = await store.enqueue(request("r1", 1), b"first")
    again = await store.enqueue(request("r1", 1, request_id="other", num_tokens=9), b"second")
    assert again == first
    assert pair_blobs.get_payload(again.payload_ref) == b"first"
    await store.finish([done(first.request_id)])
    assert (await store.enqueue(request("r1", 1), b"third")).state == "done"


async def test_a_request_is_of_the_trace_of_the_call_that_came_first(store: Store):
    context = f"00-{'a' * 32}-{'b' * 16}-01"
    first = await store.enqueue(request("r1", 1, trace_context=context), b"p")
    again = await store.enqueue(request("r1", 1, trace_context=None), b"p")
    untraced = await store.enqueue(request("r1", 2), b"p")
    assert first.trace_context == again.trace_context == context
    assert untraced.trace_context is None
    async for rows in store.new_requests():
        assert [row.trace_context for row in rows] == [context, None]
        break


async def test_simultaneous_retries_agree_on_one_request(store: Store):
    tries = [store.enqueue(request("r1", 1, request_id=f"q{n}"), b"p") for n in range(5)]
    assert len({row.request_id for row in await asyncio.gather(*tries)}) == 1


async def test_a_request_for_another_tenants_run_is_refused_as_if_the_run_were_missing(store: Store):
    await start_run(store)
    await refused_as(store.enqueue(request("r1", 1, BOB), b"p"), NotFound)
    mine = await store.enqueue(request("r1", 1), b"p")
    assert mine.tenant_id == ALICE


async def test_the_same_retry_identity_of_two_tenants_makes_two_requests(store: Store):
    mine = await store.enqueue(sample("p", 1), b"p")
    yours = await store.enqueue(sample("p", 1, BOB, request_id="bobs"), b"p")
    assert (mine.tenant_id, yours.tenant_id) == (ALICE, BOB)


async def test_a_request_moves_the_last_request_time_of_its_run_only(store: Store):
    await start_run(store)
    await start_run(store, "r2", BOB)
    await store.enqueue(request("r1", 2, created_at=50.0), b"p")
    await store.enqueue(request("r1", 1, created_at=40.0), b"p")
    assert (await store.get_run(ALICE, "r1")).last_request_at == 50.0
    assert (await store.get_run(BOB, "r2")).last_request_at == 2.0


async def test_positions_grow_in_order_of_arrival(store: Store):
    rows = await asyncio.gather(*(store.enqueue(request("r1", n), b"p") for n in (3, 1, 2)))
    assert [row.position for row in rows] == sorted(row.position for row in rows)
    assert len({row.position for row in rows}) == 3


async def test_calls_that_share_a_commit_fail_alone(store: Store, pair_blobs: DirectoryBlobs):
    await start_run(store)
    await store.close_run("r1")
    await store.enqueue(request("r2", 1, request_id="taken"), b"p")
    answers = await asyncio.gather(
        store.enqueue(request("r3", 1), b"one"),
        store.enqueue(request("r1", 1), b"two"),
        store.enqueue(request("r3", 2, request_id="taken"), b"three"),
        store.enqueue(request("r3", 3), b"four"),
        store.finish([done("unknown"), done("taken")]),
        store.heartbeat(ALICE, "nobody", 1.0),
        store.create_session(session("s1")),
        store.create_run(run("r4"), request("r4", 0), b"five"),
        return_exceptions=True,
    )
    kinds = [type(answer).__name__ for answer in answers]
    assert kinds == [
        "RequestRow",
        "SessionEnded",
        "InvalidRequest",
        "RequestRow",
        "NotFound",
        "NotFound",
        "SessionRow",
        "tuple",
    ]
    for row, payload in ((answers[0], b"one"), (answers[3], b"four")):
        assert isinstance(row, RequestRow)
        assert await store.get_request(ALICE, row.request_id) == row
        assert pair_blobs.get_payload(row.payload_ref) == payload
    assert (await store.get_request(ALICE, "taken")).state == "queued"


async def test_a_request_that_arrives_failed_is_finished_from_the_start(store: Store):
    row = request("r1", 1, state="failed", error="bad loss", category="user", finished_at=3.0)
    stored = await store.enqueue(row, b"")
    assert (stored.state, stored.error, stored.category) == ("failed", "bad loss", "user")
    assert await store.wait_finished(ALICE, row.request_id, 0.0) == stored
    await store.finish([done(row.request_id)])
    assert await store.get_request(ALICE, row.request_id) == stored


async def test_finish_wakes_those_who_wait(store: Store):
    row = await store.enqueue(request("r1", 1), b"p")
    other = await store.enqueue(request("r2", 1, BOB), b"p")
    waiting = [asyncio.create_task(store.wait_finished(ALICE, row.request_id, 30.0)) for _ in range(3)]
    bobs = asyncio.create_task(store.wait_finished(BOB, other.request_id, 30.0))
    await asyncio.sleep(0.05)
    await store.finish([done(row.request_id, category="server", error="e", num_tokens=3, busy_s=0.5)])
    ended = await store.get_request(ALICE, row.request_id)
    assert await asyncio.gather(*waiting) == [ended] * 3
    assert not bobs.done()
    await store.finish([done(other.request_id)])
    assert (await bobs) == await store.get_request(BOB, other.request_id)


async def test_waiting_for_a_finished_request_returns_at_once_again_and_again(store: Store):
    row = await store.enqueue(request("r1", 1), b"p")
    await store.finish([done(row.request_id, state="cancelled")])
    for _ in range(2):
        found = await store.wait_finished(ALICE, row.request_id, 30.0)
        assert found is not None
        assert found.state == "cancelled"


async def test_waiting_ends_without_an_answer_after_the_timeout(store: Store):
    row = await store.enqueue(request("r1", 1), b"p")
    assert await store.wait_finished(ALICE, row.request_id, 0.0) is None
    assert await store.wait_finished(ALICE, row.request_id, 0.02) is None


async def test_waiting_for_a_request_of_another_tenant_is_refused(store: Store):
    row = await store.enqueue(request("r1", 1), b"p")
    await refused_as(store.wait_finished(BOB, row.request_id, 1.0), NotFound)
    await refused_as(store.wait_finished(ALICE, "unknown", 1.0), NotFound)
    await store.finish([done(row.request_id)])
    await refused_as(store.wait_finished(BOB, row.request_id, 1.0), NotFound)


async def test_closing_the_store_ends_waiting_and_listening(store: Store):
    row = await store.enqueue(request("r1", 1), b"p")
    waiting = asyncio.create_task(store.wait_finished(ALICE, row.request_id, 30.0))
    groups = store.new_requests()
    await anext(groups)
    await asyncio.sleep(0.05)
    await store.close()
    await refused_as(waiting, Unavailable)
    with pytest.raises(StopAsyncIteration):
        await anext(groups)


async def test_the_first_end_of_a_request_counts(store: Store):
    row = await store.enqueue(request("r1", 1), b"p")
    await store.finish([done(row.request_id, result_ref="a:0:1")])
    await store.finish([done(row.request_id, state="failed", error="late", checkpoint=checkpoint("late"))])
    found = await store.get_request(ALICE, row.request_id)
    assert (found.state, found.result_ref, found.error, found.finished_at) == ("done", "a:0:1", "", 10.0)
    await refused_as(store.get_checkpoint(ALICE, "r1", "weights", "late"), NotFound)


async def test_the_same_end_twice_in_one_call_counts_once(store: Store):
    row = await store.enqueue(request("r1", 1), b"p")
    await store.finish([done(row.request_id), done(row.request_id, state="failed")])
    assert (await store.get_request(ALICE, row.request_id)).state == "done"


async def test_what_a_request_brought_into_being_is_there_with_its_end(store: Store):
    row = await store.enqueue(request("r1", 1, kind="save_weights_for_sampler"), b"p")
    made = SamplerRow("p1", ALICE, "s1", "tiny", 3.0, 4, adapter_key="k", is_ephemeral=True)
    await store.finish([done(row.request_id, checkpoint=checkpoint("a"), sampler=made)])
    assert await store.get_checkpoint(ALICE, "r1", "weights", "a") == checkpoint("a")
    assert await store.get_sampler(ALICE, "p1") == made


async def test_an_end_whose_sampler_cannot_be_stored_changes_nothing(store: Store):
    row = await store.enqueue(request("r1", 1, kind="save_weights_for_sampler"), b"p")
    await store.create_sampler(sampler("p1", BOB))
    end = done(row.request_id, checkpoint=checkpoint("a"), sampler=sampler("p1"))
    await refused_as(store.finish([end]), InvalidRequest)
    assert await store.get_request(ALICE, row.request_id) == row
    await refused_as(store.get_checkpoint(ALICE, "r1", "weights", "a"), NotFound)


async def first_group(groups: AsyncIterator[Sequence[RequestRow]]) -> list[str]:
    async with asyncio.timeout(10.0):
        return [row.request_id for row in await anext(groups)]


async def test_listening_starts_with_the_backlog_and_goes_on_with_what_arrives(store: Store):
    for n in (2, 1, 3):
        await store.enqueue(request("r1", n), b"p")
    await store.enqueue(request("r2", 1, BOB), b"p")
    await store.finish([done("alice-r1-1")])
    groups = store.new_requests()
    assert await first_group(groups) == ["alice-r1-2", "alice-r1-3", "bob-r2-1"]
    await store.enqueue(request("r1", 2), b"retried")
    await store.enqueue(request("r1", 4), b"p")
    assert await first_group(groups) == ["alice-r1-4"]
    await start_run(store, "r3")
    assert await first_group(groups) == ["alice-r3-0"]
    await store.enqueue(request("r1", 5, state="failed", error="bad", finished_at=1.0), b"")
    assert await first_group(groups) == ["alice-r1-5"]


async def test_every_listener_hears_every_request_once(store: Store):
    listeners = [store.new_requests() for _ in range(2)]
    heard: list[list[str]] = [[], []]

    async def listen(place: int) -> None:
        async for group in listeners[place]:
            heard[place].extend(row.request_id for row in group)

    tasks = [asyncio.create_task(listen(place)) for place in range(2)]
    rows = await asyncio.gather(*(store.enqueue(request("r1", n), b"p") for n in range(50)))
    more = await asyncio.gather(*(store.enqueue(request("r2", n), b"p") for n in range(50)))
    await asyncio.sleep(0.1)
    await store.close()
    await asyncio.gather(*tasks)
    assert heard[0] == heard[1] == [row.request_id for row in (*rows, *more)]


async def test_a_replay_runs_what_changed_the_run_in_order(store: Store):
    await start_run(store)
    await start_run(store, "r2", BOB)
    kinds = ("forward_backward", "forward", "optim_step", "save_weights", "forward_backward", "optim_step")
    for seq_id, kind in enumerate(kinds, start=1):
        await store.enqueue(request("r1", seq_id, kind=kind), b"p")
        await store.enqueue(request("r2", seq_id, BOB, kind=kind), b"p")
    for seq_id in (6, 3, 2, 1, 0, 4):
        await store.finish([done(f"alice-r1-{seq_id}")])
    await store.finish([done("alice-r1-5", state="failed", category="server")])
    assert [row.seq_id for row in await store.run_log("r1", -1)] == [0, 1, 3, 6]
    assert [row.seq_id for row in await store.run_log("r1", 1)] == [3, 6]
    assert await store.run_log("r9", -1) == ()


async def test_a_replay_runs_the_steps_that_failed_on_our_side_as_they_used_up_their_gradient(store: Store):
    await start_run(store)
    await store.finish([done("alice-r1-0")])
    for seq_id, category in enumerate(("server", "user", "unknown"), start=1):
        await store.enqueue(request("r1", seq_id, kind="optim_step"), b"p")
        await store.finish([done(f"alice-r1-{seq_id}", state="failed", error="bad", category=category)])
    await store.enqueue(request("r1", 4, kind="optim_step"), b"p")
    await store.finish([done("alice-r1-4", state="cancelled", error="cancelled", category="server")])
    assert [(row.seq_id, row.state) for row in await store.run_log("r1", -1)] == [(0, "done"), (1, "failed")]


async def test_progress_names_the_first_unfinished_number_and_those_finished_beyond_it(store: Store):
    await start_run(store)
    assert (await store.run_progress("r1"))[1:] == (0, frozenset())
    await store.finish([done("alice-r1-0")])
    for seq_id in (1, 2, 4, 6, 7):
        await store.enqueue(request("r1", seq_id), b"p")
    await store.enqueue(request("r1", 9, state="failed", error="bad", finished_at=1.0), b"")
    await store.finish([done("alice-r1-1"), done("alice-r1-4", state="failed"), done("alice-r1-7")])
    found, first_unfinished, later = await store.run_progress("r1")
    assert found == await store.get_run(ALICE, "r1")
    assert (first_unfinished, later) == (2, frozenset({4, 7, 9}))
    await store.finish([done("alice-r1-2")])
    assert (await store.run_progress("r1"))[1:] == (3, frozenset({4, 7, 9}))
    await refused_as(store.run_progress("r9"), NotFound)
