"""The scheduler learns of quotas from the store, and publishes what they hold up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from openrl.config import Config
from openrl.rpc.messages import Outcome
from openrl.scheduler.events import QuotasRead, RequestsArrived, SamplerLoaded
from openrl.scheduler.loop import Scheduler
from openrl.scheduler.quota_feed import QuotaFeed
from openrl.scheduler.state import SchedulerState
from openrl.store.base import Store
from openrl.store.cluster import Signal
from openrl.store.identities import OPERATOR
from openrl.store.ledger import HOUR_S
from openrl.store.memory import MemoryStore
from openrl.store.memory_blobs import MemoryBlobs
from openrl.store.quotas import DeviceUse, Limits, QuotaRow
from openrl.store.sql import create_store
from tests.postgres import new_database
from tests.store.rows_for_tests import ALICE, BOB, done, sample, sampler, session

NOW = 1_800_014_400.0  # noon of UTC, in the middle of a month


async def test_what_was_used_before_is_read_once_and_quotas_again_when_they_change():
    store = MemoryStore(clock=lambda: NOW)
    await store.create_session(session("s1", project_id="p"))
    for n, (days, busy_s) in enumerate(((0, 1.0), (2, 2.0), (40, 4.0)), start=1):
        await store.enqueue(sample("x", n, session_id="s1"), b"")
        await store.finish([done(f"x-{n}", busy_s=busy_s, finished_at=NOW - days * 24 * HOUR_S)])
    read: asyncio.Queue[QuotasRead] = asyncio.Queue()
    feed = QuotaFeed(store, lambda: NOW, read.put_nowait)
    await feed.start()
    use = [(DeviceUse(ALICE, "p", busy_us),) for busy_us in (3_000_000, 1_000_000)]
    assert read.get_nowait() == QuotasRead((), *use)
    row = QuotaRow(ALICE, "", Limits(gpu_seconds_month=3), 1.0)
    await store.put_quota(row, OPERATOR)
    task = asyncio.create_task(feed.run())
    feed.changed()
    assert await read.get() == QuotasRead((row,))
    task.cancel()


@pytest.fixture(params=["one process", "processes of their own"])
async def stores(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Store, Store]]:
    """The scheduler's, and that of gateways and operators."""
    if request.param == "one process":
        alone = MemoryStore(clock=lambda: NOW)
        yield alone, alone
        return
    url = new_database(request.getfixturevalue("postgres"))
    made = [await create_store(url, MemoryBlobs(), clock=lambda: NOW) for _ in range(2)]
    yield made[0], made[1]
    for store in made:
        await store.close()


async def test_the_scheduler_publishes_pauses_and_hears_of_changes(stores: tuple[Store, Store]):
    its_own, store = stores
    for tenant_id in (ALICE, BOB):
        await store.create_session(session(f"s-{tenant_id}", tenant_id))
    await store.quotas.put_quota(QuotaRow(ALICE, "", Limits(gpu_seconds_month=0), 1.0), OPERATOR)
    scheduler = Scheduler(its_own, MemoryBlobs(), Config(), lambda: NOW)
    task = asyncio.create_task(scheduler.run())
    try:
        async with asyncio.timeout(20):
            for tenant_id in (ALICE, BOB):
                sampler_id, session_id = f"s-{tenant_id}:sample:0", f"s-{tenant_id}"
                await store.create_sampler(sampler(sampler_id, tenant_id=tenant_id, session_id=session_id))
                await store.enqueue(sample(sampler_id, 1, tenant_id, session_id=session_id), b"")
            while not (pauses := (await store.cluster.status()).pauses):
                await asyncio.sleep(0.05)
            assert list(pauses) == [ALICE]
            assert "gpu_seconds_month" in pauses[ALICE].reason
            await store.quotas.clear_quota(ALICE, "", 2.0, OPERATOR)
            await store.cluster.tell(Signal("quotas_changed", ALICE))
            while (await store.cluster.status()).pauses:
                await asyncio.sleep(0.05)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def test_a_request_of_an_unknown_sampler_ends_without_having_asked():
    state = SchedulerState(1.0, None, Limits(running_requests=1))
    row = sample("gone", 1)
    state.handle(RequestsArrived((row,)), NOW)
    (finish,) = state.handle(SamplerLoaded("gone", None), NOW)
    assert getattr(finish, "outcome", Outcome("")).error
    assert state.pauses() == {}
