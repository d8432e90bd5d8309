"""PostgreSQL that goes away in the middle of traffic: callers see a delay, and every write has one effect."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import psycopg
import pytest
from sqlalchemy import PoolProxiedConnection

from openrl.errors import OpenRLError, Unavailable
from openrl.store import outage, postgres
from openrl.store.base import RequestRow
from openrl.store.blobs import DirectoryBlobs
from openrl.store.sql import SqlStore, create_store
from tests.postgres import PostgresServer
from tests.store.expectations import refused_as
from tests.store.rows_for_tests import ALICE, checkpoint, done, request, sampler, session

Open = Callable[[], Awaitable[SqlStore]]


@pytest.fixture
async def open_store(database_url: str, pair_blobs: DirectoryBlobs) -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        async def open_one() -> SqlStore:
            store = await create_store(database_url, pair_blobs)
            stack.push_async_callback(store.close)
            return store

        yield open_one


class Traffic:
    """Clients, and a scheduler that ends what they ask for, each with a store of its own."""

    def __init__(self, gateway: SqlStore, scheduler: SqlStore) -> None:
        self.gateway = gateway
        self.scheduler = scheduler
        self.is_over = False
        self.ended: list[str] = []
        self.numbers: list[int] = []

    async def client(self, name: str) -> None:
        n = 0
        while not self.is_over:
            row = await self.gateway.enqueue(request(name, n), b"p")
            found = None
            while found is None:
                found = await self.gateway.wait_finished(ALICE, row.request_id, 5.0)
            assert found.state == "done"
            self.ended.append(found.request_id)
            n += 1

    async def join(self, store: SqlStore) -> None:
        while not self.is_over:
            self.numbers.append(await store.join_sampler(ALICE, "p"))

    async def schedule(self) -> None:
        seen: set[str] = set()
        async for rows in self.scheduler.new_requests():
            ids = [row.request_id for row in rows]
            assert seen.isdisjoint(ids)
            seen.update(ids)
            await self.scheduler.finish([done(each) for each in ids])

    async def run(self, disturb: Callable[[], Awaitable[None]]) -> None:
        await self.gateway.create_sampler(sampler("p"))
        async with asyncio.timeout(120.0), asyncio.TaskGroup() as tasks:
            scheduling = tasks.create_task(self.schedule())
            clients = [tasks.create_task(self.client(f"r{n}")) for n in range(12)]
            clients += [tasks.create_task(self.join(store)) for store in (self.gateway, self.scheduler)]
            await asyncio.sleep(0.3)
            await disturb()
            await asyncio.sleep(0.3)
            self.is_over = True
            await asyncio.wait(clients)
            scheduling.cancel()


@pytest.mark.parametrize("kind", ["disconnect", "restart", "kill"])
async def test_a_database_that_goes_and_comes_loses_nothing(
    kind: str, open_store: Open, postgres: PostgresServer, database_url: str
):
    async def disturb() -> None:
        for _ in range(3):
            if kind == "disconnect":
                await asyncio.to_thread(postgres.disconnect_all, database_url.rpartition("/")[2])
            elif kind == "restart":
                await asyncio.to_thread(postgres.restart)
            else:
                await asyncio.to_thread(postgres.kill)
                await asyncio.sleep(0.5)
                await asyncio.to_thread(postgres.start)
            num = len(traffic.ended)
            while len(traffic.ended) < num + 24:
                await asyncio.sleep(0.01)

    traffic = Traffic(await open_store(), await open_store())
    await traffic.run(disturb)
    assert len(set(traffic.ended)) == len(traffic.ended)
    for request_id in traffic.ended:
        assert (await traffic.gateway.get_request(ALICE, request_id)).state == "done"
    # Counting is not idempotent: every call that was answered has counted once.
    assert sorted(traffic.numbers) == list(range(1, len(traffic.numbers) + 1))


def break_commits(store: SqlStore, monkeypatch: pytest.MonkeyPatch, is_kept: bool, num: int = 1) -> None:
    """The connection breaks during the next commits; whether they took place is not known to the process."""
    engine = store._engines.writer
    commit = engine.dialect.do_commit
    left = [num]

    def broken(connection: PoolProxiedConnection) -> None:
        if left[0] == 0:
            return commit(connection)
        left[0] -= 1
        if is_kept:
            commit(connection)
        assert connection.dbapi_connection is not None
        connection.dbapi_connection.close()
        raise psycopg.OperationalError("the connection broke")

    monkeypatch.setattr(engine.dialect, "do_commit", broken)


@pytest.mark.parametrize("is_kept", [True, False])
async def test_a_commit_whose_outcome_is_unknown_takes_effect_once(
    is_kept: bool, open_store: Open, monkeypatch: pytest.MonkeyPatch
):
    store = await open_store()
    await store.create_sampler(sampler("p"))
    first = await store.enqueue(request("r1", 1), b"p")
    groups = store.new_requests()
    assert await anext(groups) == (first,)
    waiting = asyncio.create_task(store.wait_finished(ALICE, first.request_id, 30.0))
    break_commits(store, monkeypatch, is_kept)
    saved = checkpoint("a")
    answers = await asyncio.gather(
        store.join_sampler(ALICE, "p"),
        store.enqueue(request("r1", 2), b"p"),
        store.finish([done(first.request_id, checkpoint=saved)]),
        store.create_session(session("s1")),
        store.delete_checkpoint(ALICE, "r9", "weights", "none"),
        return_exceptions=True,
    )
    assert [type(answer).__name__ for answer in answers] == ["int", "RequestRow", "NoneType", "SessionRow", "NotFound"]
    assert answers[0] == 1
    assert await store.join_sampler(ALICE, "p") == 2
    assert await anext(groups) == (answers[1],)
    ended = await waiting
    assert ended is not None
    assert ended.state == "done"
    entries = await store.ledger.audit_log(ALICE, "checkpoints", 0.0, 1e10)
    assert [entry.event for entry in entries] == ["checkpoint_save"]


async def test_after_a_long_outage_callers_are_told_and_what_was_kept_is_heard_of(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(outage, "MAX_OUTAGE_S", 0.0)
    store = await open_store()
    groups = store.new_requests()
    assert await anext(groups) == ()
    break_commits(store, monkeypatch, is_kept=True)
    await refused_as(store.enqueue(request("r1", 1), b"p"), Unavailable)
    async with asyncio.timeout(30.0):
        heard = await anext(groups)
    again = await store.enqueue(request("r1", 1, request_id="another"), b"p")
    assert heard == (again,)
    assert again.request_id == "alice-r1-1"


async def test_a_long_outage_is_told_and_ends(
    open_store: Open, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(outage, "MAX_OUTAGE_S", 0.3)
    store = await open_store()
    row = await store.enqueue(request("r1", 1), b"p")
    await asyncio.to_thread(postgres.kill)
    try:
        answers = await asyncio.gather(
            store.enqueue(request("r1", 2), b"p"),
            store.get_request(ALICE, row.request_id),
            return_exceptions=True,
        )
    finally:
        await asyncio.to_thread(postgres.start)
    assert [type(answer) for answer in answers] == [Unavailable, Unavailable]
    assert await store.get_request(ALICE, row.request_id) == row
    assert (await store.enqueue(request("r1", 2), b"p")).state == "queued"


async def test_a_store_closes_while_the_database_is_away(open_store: Open, postgres: PostgresServer):
    store = await open_store()
    await asyncio.to_thread(postgres.kill)
    try:
        reading = asyncio.create_task(store.identities.list_tenants())
        await asyncio.sleep(0.2)
        async with asyncio.timeout(10.0):
            await store.close()
        await refused_as(reading, Unavailable)
    finally:
        await asyncio.to_thread(postgres.start)


async def test_what_was_committed_while_nobody_listened_is_read(
    open_store: Open, postgres: PostgresServer, database_url: str
):
    here, there = await open_store(), await open_store()
    row = await here.enqueue(request("r1", 0), b"p")
    waiting = asyncio.create_task(here.wait_finished(ALICE, row.request_id, 60.0))
    groups = here.new_requests()
    await anext(groups)
    heard: list[RequestRow] = []
    stored: list[RequestRow] = []
    cut = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        f"WHERE datname = '{database_url.rpartition('/')[2]}' AND query LIKE 'LISTEN%'"
    )
    async with asyncio.timeout(60.0):
        for n in range(1, 31):
            if n % 5 == 1:
                await asyncio.to_thread(postgres.execute, cut)
            stored.append(await there.enqueue(request("r1", n), b"p"))
        await there.finish([done(row.request_id)])
        while len(heard) < 30:
            heard += await anext(groups)
        ended = await waiting
    assert heard == stored
    assert ended is not None
    assert ended.state == "done"


async def test_a_process_that_stops_in_the_middle_of_a_transaction_does_not_stop_the_others(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
):
    here = await open_store()
    monkeypatch.setattr(postgres, "IDLE_IN_TRANSACTION_S", 0.5)
    stopped = await open_store()
    goes_on = threading.Event()
    is_inside = threading.Event()

    def hang(_connection: object) -> None:
        is_inside.set()
        goes_on.wait(30.0)

    hanging = asyncio.create_task(stopped._change(hang))
    await asyncio.to_thread(is_inside.wait)
    async with asyncio.timeout(10.0):
        assert (await here.enqueue(request("r1", 1), b"p")).state == "queued"
    goes_on.set()
    await hanging  # its transaction is gone; done once more, it succeeds
    with pytest.raises(OpenRLError):
        await stopped.get_request(ALICE, "unknown")
