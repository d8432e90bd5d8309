"""The contract of `store/cluster.py`, held in memory and over SQL."""

import asyncio

from openrl.errors import InvalidRequest, LeaseLost, NotFound
from openrl.store.base import Store, TenantRow
from openrl.store.cluster import Demand, HourOfWork, Lease, Load, Pause, SchedulerStatus, Signal, WorkerStatus
from openrl.store.identities import OPERATOR
from tests.store.expectations import refused_as, start_run
from tests.store.rows_for_tests import ALICE, BOB, done, request, run, sample, sampler, session

STATUS = SchedulerStatus(("tiny", "small"), {"alice": Pause("paused_rate_limit", "12 tokens a second")}, 3)


async def lead(store: Store, holder: str = "first", ttl_s: float = 60.0) -> Lease:
    lease = await store.cluster.acquire_lease("scheduler", holder, f"tcp:{holder}:1", ttl_s)
    assert lease is not None
    return lease


async def lose_to(store: Store, lease: Lease, holder: str = "second") -> Lease:
    await store.cluster.release_lease(lease)
    return await lead(store, holder)


async def test_a_lease_has_one_holder(store: Store):
    lease = await lead(store)
    assert lease == Lease("scheduler", "first", 1, 60.0, "tcp:first:1")
    assert await store.cluster.acquire_lease("scheduler", "second", "tcp:second:1", 60.0) is None
    held = await store.cluster.read_lease("scheduler")
    assert held is not None
    assert (held.holder, held.epoch, held.address) == ("first", 1, "tcp:first:1")
    assert 50.0 < held.expires_in_s <= 60.0
    assert await store.cluster.read_lease("other") is None


async def test_simultaneous_claims_agree_on_one_holder(store: Store):
    claims = [store.cluster.acquire_lease("scheduler", f"h{n}", "", 60.0) for n in range(5)]
    assert sum(lease is not None for lease in await asyncio.gather(*claims)) == 1


async def test_leases_of_other_names_are_apart(store: Store):
    await lead(store)
    other = await store.cluster.acquire_lease("sweeper", "second", "", 60.0)
    assert other is not None
    assert other.epoch == 1


async def test_the_holder_gets_its_lease_again_with_the_same_epoch(store: Store):
    await lead(store)
    again = await store.cluster.acquire_lease("scheduler", "first", "tcp:elsewhere:2", 30.0)
    assert again == Lease("scheduler", "first", 1, 30.0, "tcp:elsewhere:2")


async def test_a_lease_that_is_not_renewed_expires(store: Store):
    old = await lead(store, ttl_s=0.05)
    await asyncio.sleep(0.1)
    assert await store.cluster.read_lease("scheduler") is None
    assert (await lead(store, "second")).epoch == 2
    await refused_as(store.cluster.renew_lease(old, 60.0), LeaseLost)


async def test_a_renewed_lease_stays(store: Store):
    lease = await lead(store, ttl_s=0.05)
    renewed = await store.cluster.renew_lease(lease, 60.0)
    assert (renewed.epoch, renewed.expires_in_s) == (1, 60.0)
    await asyncio.sleep(0.1)
    assert await store.cluster.acquire_lease("scheduler", "second", "", 60.0) is None


async def test_an_expired_lease_that_nobody_took_can_be_renewed(store: Store):
    lease = await lead(store, ttl_s=0.02)
    await asyncio.sleep(0.05)
    assert (await store.cluster.renew_lease(lease, 60.0)).epoch == 1
    assert await store.cluster.read_lease("scheduler") is not None


async def test_a_released_lease_is_free_at_once_and_its_epochs_go_on(store: Store):
    first = await lead(store)
    await store.cluster.release_lease(first)
    assert await store.cluster.read_lease("scheduler") is None
    await refused_as(store.cluster.renew_lease(first, 60.0), LeaseLost)
    second = await lead(store, "second")
    assert second.epoch == 2
    await store.cluster.release_lease(first)
    assert await store.cluster.read_lease("scheduler") is not None
    assert (await lose_to(store, second, "first")).epoch == 3


async def test_a_lease_that_was_never_given_is_lost(store: Store):
    invented = Lease("scheduler", "nobody", 7, 1.0, "")
    await refused_as(store.cluster.renew_lease(invented, 60.0), LeaseLost)
    await store.cluster.release_lease(invented)
    store.cluster.fence(invented)
    await refused_as(store.identities.create_tenant(TenantRow("t", "t", 1.0), OPERATOR), LeaseLost)


async def test_who_holds_the_lease_writes_through_the_fence(store: Store):
    store.cluster.fence(await lead(store, ttl_s=0.02))
    await asyncio.sleep(0.05)  # expired, but nobody else has had it
    await start_run(store)
    await store.finish([done("alice-r1-0")])
    assert (await store.get_request(ALICE, "alice-r1-0")).state == "done"


async def test_who_has_lost_the_lease_changes_nothing(store: Store):
    await start_run(store)
    await store.create_session(session("s1"))
    lease = await lead(store)
    store.cluster.fence(lease)
    second = await lose_to(store, lease)
    await refused_as(store.finish([done("alice-r1-0")]), LeaseLost)
    await refused_as(store.enqueue(request("r1", 1), b"p"), LeaseLost)
    await refused_as(store.create_run(run("r2"), request("r2", 0), b"p"), LeaseLost)
    await refused_as(store.end_session(ALICE, "s1", "expired", "silent"), LeaseLost)
    await refused_as(store.record_snapshot("r1", 0, "k"), LeaseLost)
    await refused_as(store.prune(100.0), LeaseLost)
    await refused_as(store.cluster.publish_status(STATUS), LeaseLost)
    assert (await store.get_request(ALICE, "alice-r1-0")).state == "queued"
    assert (await store.get_session(ALICE, "s1")).state == "active"
    await refused_as(store.get_request(ALICE, "alice-r1-1"), NotFound)
    await refused_as(store.get_run(ALICE, "r2"), NotFound)
    assert (await store.cluster.renew_lease(second, 60.0)).epoch == 2  # leases themselves are not fenced


async def test_who_leads_again_writes_again(store: Store):
    await start_run(store)
    first = await lead(store)
    store.cluster.fence(first)
    second = await lose_to(store, first)
    store.cluster.fence(await lose_to(store, second, "first"))
    await store.finish([done("alice-r1-0")])
    await refused_as(store.enqueue(request("r9", 1, request_id="alice-r1-0"), b"p"), InvalidRequest)


async def test_the_status_is_the_one_published_last(store: Store):
    assert await store.cluster.status() == SchedulerStatus()
    await store.cluster.publish_status(SchedulerStatus(num_workers=9))
    await store.cluster.publish_status(STATUS)
    assert await store.cluster.status() == STATUS


async def test_the_status_of_a_lease_goes_with_it(store: Store):
    lease = await lead(store)
    store.cluster.fence(lease)
    await store.cluster.publish_status(STATUS)
    assert await store.cluster.status() == STATUS
    second = await lose_to(store, lease)
    assert await store.cluster.status() == SchedulerStatus()
    store.cluster.fence(second)
    await store.cluster.publish_status(STATUS)
    assert await store.cluster.status() == STATUS
    await store.cluster.renew_lease(second, 0.02)
    await asyncio.sleep(0.05)
    assert await store.cluster.status() == SchedulerStatus()


async def test_everybody_who_listens_hears_a_signal(store: Store):
    async def first_two() -> list[Signal]:
        signals = store.cluster.signals()
        return [await anext(signals) for _ in range(2)]

    listeners = [asyncio.create_task(first_two()) for _ in range(2)]
    await asyncio.sleep(0.05)
    told = [Signal("cancel", "q1"), Signal("session_ended", "s1")]
    for signal in told:
        await store.cluster.tell(signal)
    assert await asyncio.gather(*listeners) == [told, told]
    await store.cluster.tell(Signal("keys_changed", ""))


async def test_closing_the_store_ends_the_signals(store: Store):
    async def listen() -> list[Signal]:
        return [signal async for signal in store.cluster.signals()]

    listening = asyncio.create_task(listen())
    await asyncio.sleep(0.05)
    await store.cluster.tell(Signal("cancel", "q1"))
    await store.close()
    assert await listening == [Signal("cancel", "q1")]
    assert await listen() == []


async def test_the_status_tells_of_every_worker(store: Store):
    worker = WorkerStatus("pod-0", "trainers", "train", ("tiny",), "draining", 3, 7)
    await store.cluster.publish_status(SchedulerStatus(num_workers=1, workers=(worker,)))
    assert (await store.cluster.status()).workers == (worker,)


async def test_the_status_tells_of_the_load(store: Store):
    loaded = SchedulerStatus(num_workers=1, load=Load(0.25, 1.5))
    await store.cluster.publish_status(loaded)
    assert await store.cluster.status() == loaded


async def test_demand_is_what_waits_and_what_is_live_of_all_tenants(store: Store):
    assert await store.cluster.demand() == ()
    await store.create_session(session("s1"))
    await start_run(store)
    waiting, other = request("r1", 1, base_model="tiny"), request("r2", 1, "bob", base_model="tiny")
    await store.enqueue(waiting, b"p")
    await start_run(store, "r2", "bob")
    await store.enqueue(other, b"p")
    await store.finish([done("alice-r1-0"), done("bob-r2-0")])
    await store.close_run("r2")
    await store.create_sampler(sampler("p1"))
    await store.create_sampler(sampler("p2", sampling_session_seq_id=1))
    assert await store.cluster.demand() == (
        Demand("tiny", "alice", "sample", num_live=1),
        Demand("tiny", "alice", "train", 1, waiting.num_tokens, waiting.created_at, num_live=1),
        Demand("tiny", "bob", "train", 1, other.num_tokens, other.created_at),
    )
    await store.end_session(ALICE, "s1", "expired", "silent")
    assert [each.side for each in await store.cluster.demand()] == ["train", "train"]


async def test_work_is_counted_by_model_side_and_hour_over_all_tenants(store: Store):
    for tenant, run_id in ((ALICE, "r1"), (BOB, "r2")):
        first = request(run_id, 0, tenant, base_model="tiny")
        await store.create_run(run(run_id, tenant), first, b"")
        await store.enqueue(request(run_id, 1, tenant, base_model="tiny"), b"")
        await store.enqueue(request(run_id, 2, tenant, base_model="tiny", kind="save_weights"), b"")
        ends = [done(f"{tenant}-{run_id}-{n}", num_tokens=n * 100, busy_s=0.5, finished_at=3600.0) for n in range(3)]
        await store.finish(ends)
    await store.enqueue(sample("x", 1, base_model="tiny"), b"")
    await store.finish(
        [done("x-1", num_tokens=70, num_sampled_tokens=50, num_cached_tokens=30, busy_s=2.0, finished_at=7300.0)]
    )
    trained, sampled = HourOfWork("tiny", "train", 1, 200, 2.0), HourOfWork("tiny", "sample", 2, 100, 2.0)
    assert await store.cluster.work(0, 10) == (sampled, trained)
    assert await store.cluster.work(1, 2) == (trained,)
