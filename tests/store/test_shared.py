"""Two stores, as two processes have them, on one PostgreSQL database."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

import pytest

from openrl.errors import LeaseLost, NotFound, Unauthorized
from openrl.store.base import MAX_ENDED, RequestRow, Store
from openrl.store.blobs import DirectoryBlobs
from openrl.store.cluster import Lease, SchedulerStatus, Signal
from openrl.store.identities import OPERATOR, ApiKeyRow
from openrl.store.sql import SqlStore, create_store
from tests.store.expectations import refused_as, start_run
from tests.store.rows_for_tests import ALICE, BOB, done, request, sample, sampler

Open = Callable[[], Awaitable[SqlStore]]
ALL = range(10**9)


@pytest.fixture
async def open_store(database_url: str, pair_blobs: DirectoryBlobs) -> AsyncIterator[Open]:
    """Opens one more store on the database."""
    async with AsyncExitStack() as stack:

        async def open_one() -> SqlStore:
            store = await create_store(database_url, pair_blobs)
            stack.push_async_callback(store.close)
            return store

        yield open_one


@pytest.fixture
async def here(open_store: Open) -> SqlStore:
    return await open_store()


@pytest.fixture
async def there(open_store: Open) -> SqlStore:
    return await open_store()


async def hear(groups: AsyncIterator[Sequence[RequestRow]], num: int) -> list[RequestRow]:
    rows: list[RequestRow] = []
    async with asyncio.timeout(30.0):
        while len(rows) < num:
            rows += await anext(groups)
    return rows


async def enqueue_many(store: Store, name: str, num: int) -> list[RequestRow]:
    return await asyncio.gather(*(store.enqueue(request(name, n), b"p") for n in range(num)))


async def test_both_say_that_they_share(here: SqlStore):
    assert here.cluster.is_shared


async def test_what_arrives_here_is_heard_there(here: SqlStore, there: SqlStore):
    before = await enqueue_many(here, "r1", 3)
    groups = there.new_requests()
    assert list(await anext(groups)) == before
    first = await enqueue_many(here, "r2", 30)
    own = await enqueue_many(there, "r3", 5)
    last = await enqueue_many(here, "r4", 30)
    failed = await here.enqueue(request("r5", 1, state="failed", error="bad", finished_at=1.0), b"")
    assert await hear(groups, 66) == [*first, *own, *last, failed]


async def test_a_second_listener_starts_where_it_begins(here: SqlStore, there: SqlStore):
    early = there.new_requests()
    await anext(early)
    await enqueue_many(here, "r1", 10)
    late = there.new_requests()
    assert len(await anext(late)) == 10
    rows = await enqueue_many(here, "r2", 10)
    assert [row.request_id for row in (await hear(early, 20))[10:]] == [row.request_id for row in rows]
    assert await hear(late, 10) == rows
    await early.aclose()  # pyright: ignore[reportAttributeAccessIssue]
    again = there.new_requests()
    assert len(await anext(again)) == 20


async def test_every_listener_hears_all_once_in_the_order_of_commits(open_store: Open, here: SqlStore, there: SqlStore):
    stores = [here, there, await open_store()]
    heard: list[list[RequestRow]] = [[] for _ in stores]

    async def listen(place: int) -> None:
        groups = stores[place].new_requests()
        while len(heard[place]) < 600:
            heard[place] += await anext(groups)

    async def write(place: int) -> None:
        for n in range(20):
            rows = await asyncio.gather(*(stores[place].enqueue(request(f"r{place}{n}", k), b"p") for k in range(10)))
            await stores[(place + n) % 3].finish([done(row.request_id) for row in rows[:3]])

    async with asyncio.timeout(60.0), asyncio.TaskGroup() as tasks:
        for place in range(3):
            tasks.create_task(listen(place))
            tasks.create_task(write(place))
    for rows in heard:
        assert [row.position for row in rows] == sorted({row.position for row in rows})
        assert len(rows) == 600


async def test_a_request_from_there_is_read_once_for_all_who_ask_again(here: SqlStore, there: SqlStore):
    row = await there.enqueue(request("r1", 1), b"p")
    assert await here.wait_finished(ALICE, row.request_id, 0.01) is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(here, "_read", None)
        assert await here.wait_finished(ALICE, row.request_id, 0.01) is None
    assert await refused_as(here.wait_finished(BOB, row.request_id, 0.01), NotFound)
    await there.finish([done(row.request_id)])
    async with asyncio.timeout(30.0):
        ended = await here.wait_finished(ALICE, row.request_id, 60.0)
    assert ended is not None
    assert ended.state == "done"


async def test_a_request_that_may_have_ended_unheard_is_read_again(here: SqlStore, there: SqlStore):
    row = await there.enqueue(request("r1", 1), b"p")
    board = here._board
    num_doubts = board.num_doubts
    board.doubt_all()
    board.keep_waited(row, num_doubts)
    assert board.look_up(ALICE, row.request_id) is None


async def test_an_end_there_wakes_those_who_wait_here(here: SqlStore, there: SqlStore):
    rows = [await here.enqueue(request("r1", 1), b"p"), await there.enqueue(request("r1", 2), b"p")]
    waiting = [asyncio.create_task(here.wait_finished(ALICE, row.request_id, 30.0)) for row in (*rows, *rows)]
    await asyncio.sleep(0.05)
    started = time.monotonic()
    await there.finish([done(row.request_id) for row in rows])
    ended = await asyncio.gather(*waiting)
    assert time.monotonic() - started < 5.0
    assert ended == [await here.get_request(ALICE, row.request_id) for row in (*rows, *rows)]


async def test_an_end_there_is_known_here_to_those_who_ask_later(here: SqlStore, there: SqlStore):
    rows = await enqueue_many(here, "r1", 20)
    await there.finish([done(row.request_id) for row in rows])
    found = await asyncio.gather(*(here.wait_finished(ALICE, row.request_id, 30.0) for row in rows))
    assert [row is not None and row.state for row in found] == ["done"] * 20


async def test_ends_chase_arrivals(here: SqlStore, there: SqlStore):
    """Another process may have ended a request before this one knows that it is stored."""

    async def finish_at_once() -> None:
        groups = there.new_requests()
        num = 0
        while num < 300:
            rows = await anext(groups)
            await there.finish([done(row.request_id) for row in rows])
            num += len(rows)

    async def one(n: int) -> None:
        row = await here.enqueue(request("r1", n), b"p")
        found = await here.wait_finished(ALICE, row.request_id, 30.0)
        assert found is not None
        assert found.state == "done"

    async with asyncio.timeout(60.0), asyncio.TaskGroup() as tasks:
        tasks.create_task(finish_at_once())
        for n in range(300):
            tasks.create_task(one(n))
            await asyncio.sleep(0.001 * (n % 3))


async def test_samples_that_end_anywhere_are_announced_in_order(here: SqlStore, there: SqlStore):
    await here.create_sampler(sampler("p"))
    await here.create_sampler(sampler("q", BOB))
    for n in range(60):
        await there.enqueue(sample("p", n), b"p")
    heard: list[RequestRow] = []

    async def listen() -> None:
        while len(heard) < 60:
            heard.extend(await here.ended_samples(ALICE, "p", ALL, heard[-1].end_position if heard else 0, 30.0))

    async with asyncio.timeout(30.0), asyncio.TaskGroup() as tasks:
        tasks.create_task(listen())
        for n in range(60):
            tasks.create_task((here, there)[n % 2].finish([done(f"p-{n}")]))
            await asyncio.sleep(0.001 * (n % 3))
    assert sorted(row.seq_id for row in heard) == list(range(60))
    assert [row.end_position for row in heard] == sorted(row.end_position for row in heard)
    assert await here.ended_samples(BOB, "q", ALL, 0, 0.05) == ()


async def test_more_ends_than_fit_into_one_notice_all_arrive(here: SqlStore, there: SqlStore):
    rows = await enqueue_many(here, "r" * 60, MAX_ENDED)
    waiting = [asyncio.create_task(here.wait_finished(ALICE, row.request_id, 30.0)) for row in rows]
    long = await here.enqueue(request("r1", 1, request_id="q" * 9000), b"p")
    waiting.append(asyncio.create_task(here.wait_finished(ALICE, long.request_id, 30.0)))
    await asyncio.sleep(0.1)
    await there.finish([done(row.request_id) for row in (*rows, long)])
    assert all(row is not None and row.state == "done" for row in await asyncio.gather(*waiting))


async def test_simultaneous_retries_here_and_there_agree_on_one_request(here: SqlStore, there: SqlStore):
    tries = [(here, there)[n % 2].enqueue(request("r1", n // 20, request_id=f"q{n}"), b"p") for n in range(100)]
    rows = await asyncio.gather(*tries)
    assert [len({row.request_id for row in rows[start : start + 20]}) for start in range(0, 100, 20)] == [1] * 5
    assert len({row.position for row in rows}) == 5


async def test_numbers_of_clients_are_given_once(here: SqlStore, there: SqlStore):
    await here.create_sampler(sampler("p"))
    numbers = await asyncio.gather(*((here, there)[n % 2].join_sampler(ALICE, "p") for n in range(40)))
    assert sorted(numbers) == list(range(1, 41))


async def lead(store: Store, holder: str, ttl_s: float = 60.0) -> Lease:
    lease = await store.cluster.acquire_lease("scheduler", holder, f"tcp:{holder}:1", ttl_s)
    assert lease is not None
    return lease


async def test_an_old_leader_changes_nothing(here: SqlStore, there: SqlStore):
    await start_run(here)
    here.cluster.fence(await lead(here, "here", 0.05))
    await here.cluster.publish_status(SchedulerStatus(num_workers=1))
    await asyncio.sleep(0.1)
    there.cluster.fence(await lead(there, "there"))
    waiting = asyncio.create_task(there.wait_finished(ALICE, "alice-r1-0", 30.0))
    await refused_as(here.finish([done("alice-r1-0", state="failed")]), LeaseLost)
    await refused_as(here.cluster.publish_status(SchedulerStatus(num_workers=2)), LeaseLost)
    assert (await here.get_request(ALICE, "alice-r1-0")).state == "queued"
    assert not waiting.done()
    await there.finish([done("alice-r1-0")])
    ended = await waiting
    assert ended is not None
    assert ended.state == "done"
    assert await here.cluster.status() == SchedulerStatus()


async def test_two_leaders_never_write_under_the_same_epoch(here: SqlStore, there: SqlStore):
    epochs: list[int] = []

    async def campaign(store: SqlStore, holder: str) -> None:
        for _ in range(30):
            lease = await store.cluster.acquire_lease("scheduler", holder, "", 0.01)
            if lease is not None:
                epochs.append(lease.epoch)
                await store.cluster.release_lease(lease)

    await asyncio.gather(campaign(here, "here"), campaign(there, "there"))
    assert len(set(epochs)) == len(epochs)


async def test_leases_do_not_look_at_the_clock_of_a_client(
    here: SqlStore, there: SqlStore, monkeypatch: pytest.MonkeyPatch
):
    lease = await lead(here, "here", 30.0)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert await there.cluster.acquire_lease("scheduler", "there", "", 30.0) is None
    held = await there.cluster.read_lease("scheduler")
    assert held is not None
    assert held.expires_in_s == pytest.approx(lease.expires_in_s, abs=5.0)


async def test_signals_reach_the_other_process(here: SqlStore, there: SqlStore):
    async def first(store: SqlStore) -> Signal:
        return await anext(store.cluster.signals())

    listening = [asyncio.create_task(first(store)) for store in (here, there)]
    await asyncio.sleep(0.05)
    await here.cluster.tell(Signal("cancel", "q\u00e4\x00"))
    assert await asyncio.gather(*listening) == [Signal("cancel", "q\u00e4\x00")] * 2


async def test_a_key_revoked_there_is_refused_here_at_once(here: SqlStore, there: SqlStore):
    await there.identities.add_api_key(ApiKeyRow("h1", ALICE, "laptop", 1.0), OPERATOR)
    assert (await here.identities.identity_of_key("h1", 1.0)).tenant_id == ALICE
    await there.identities.revoke_api_key(ALICE, "h1", 2.0, OPERATOR)
    async with asyncio.timeout(3.0):  # before what is remembered would have aged
        while here._identities._keys.get("h1") is not None:
            await asyncio.sleep(0.01)
    await refused_as(here.identities.identity_of_key("h1", 1.0), Unauthorized)


async def test_results_freed_there_are_not_remembered_here(here: SqlStore, there: SqlStore):
    row = await here.enqueue(request("r1", 1), b"p")
    await here.finish([done(row.request_id)])
    await there.prune(finished_before=100.0)
    async with asyncio.timeout(10.0):
        while True:
            found = await here.wait_finished(ALICE, row.request_id, 1.0)
            if found is not None and found.result_ref == "":
                break
            await asyncio.sleep(0.01)
