import asyncio

import pytest

from openrl.errors import LeaseLost, Unavailable
from openrl.scheduler.seat import LEASE, Seat
from openrl.store.cluster import Lease
from openrl.store.memory_cluster import MemoryCluster


class BrokenCluster(MemoryCluster):
    """Its store goes away while `is_away`."""

    is_away = False

    async def renew_lease(self, lease: Lease, ttl_s: float) -> Lease:
        if self.is_away:
            raise Unavailable("the database is gone")
        return await super().renew_lease(lease, ttl_s)


async def test_one_waits_until_the_other_has_given_its_seat_back():
    cluster = MemoryCluster()
    first, second = Seat(cluster, "tcp:a:1", 5.0), Seat(cluster, "tcp:b:1", 5.0)
    lease = await first.take()
    waiting = asyncio.create_task(second.take())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await first.give_back(lease)
    async with asyncio.timeout(3):
        next_lease = await waiting
    assert (next_lease.address, next_lease.epoch) == ("tcp:b:1", lease.epoch + 1)


async def test_who_renews_keeps_the_seat_for_longer_than_a_lease():
    cluster = MemoryCluster()
    seat = Seat(cluster, "tcp:a:1", 0.2)
    lease = await seat.take()
    keeping = asyncio.create_task(seat.keep(lease))
    await asyncio.sleep(0.6)
    assert not keeping.done()
    held = await cluster.read_lease(LEASE)
    assert held is not None
    assert held.epoch == lease.epoch
    keeping.cancel()


async def test_who_was_away_for_longer_than_a_lease_learns_that_another_has_the_seat():
    cluster = MemoryCluster()
    seat = Seat(cluster, "tcp:a:1", 0.1)
    lease = await seat.take()
    await asyncio.sleep(0.2)
    other = await Seat(cluster, "tcp:b:1", 5.0).take()
    with pytest.raises(LeaseLost):
        await seat.keep(lease)
    await seat.give_back(lease)
    held = await cluster.read_lease(LEASE)
    assert held is not None
    assert held.holder == other.holder


async def test_who_cannot_renew_gives_up_when_its_own_clock_says_so():
    cluster = BrokenCluster()
    seat = Seat(cluster, "tcp:a:1", 0.4)
    lease = await seat.take()
    keeping = asyncio.create_task(seat.keep(lease))
    cluster.is_away = True
    await asyncio.sleep(0.25)
    assert not keeping.done()
    with pytest.raises(LeaseLost, match="was not renewed"):
        async with asyncio.timeout(2):
            await keeping


async def test_a_short_outage_costs_no_seat():
    cluster = BrokenCluster()
    seat = Seat(cluster, "tcp:a:1", 0.4)
    lease = await seat.take()
    keeping = asyncio.create_task(seat.keep(lease))
    cluster.is_away = True
    await asyncio.sleep(0.2)
    cluster.is_away = False
    await asyncio.sleep(0.6)
    assert not keeping.done()
    keeping.cancel()


async def test_the_same_process_takes_the_seat_again_under_a_new_epoch():
    cluster = MemoryCluster()
    first = await Seat(cluster, "tcp:a:1", 0.05).take()
    await asyncio.sleep(0.1)
    assert (await Seat(cluster, "tcp:a:1", 5.0).take()).epoch == first.epoch + 1
