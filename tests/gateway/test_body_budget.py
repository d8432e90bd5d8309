import asyncio

import pytest

from openrl.errors import Unavailable
from openrl.gateway.body_budget import BodyBudget, BodyLease


async def held(budget: BodyBudget, tenant: str, num_bytes: int) -> BodyLease:
    lease = BodyLease(tenant)
    await budget.hold(lease, num_bytes)
    return lease


async def test_what_does_not_fit_waits_until_something_is_released():
    budget = BodyBudget(100)
    first, second = await held(budget, "a", 50), await held(budget, "b", 50)
    third = asyncio.create_task(held(budget, "c", 40))
    await asyncio.sleep(0)
    assert not third.done()
    budget.release(first)
    lease = await third
    assert (lease.num_bytes, budget.num_held) == (40, 90)
    budget.release(lease)
    budget.release(second)
    assert budget.num_held == 0


async def test_a_tenants_flood_leaves_the_other_half():
    budget = BodyBudget(100)
    await held(budget, "flood", 50)
    more = [asyncio.create_task(held(budget, "flood", 10)) for _ in range(5)]
    await asyncio.sleep(0)
    lease = await held(budget, "other", 50)
    assert not any(task.done() for task in more)
    budget.release(lease)
    await asyncio.sleep(0)
    assert not any(task.done() for task in more)
    for task in more:
        task.cancel()
    await asyncio.gather(*more, return_exceptions=True)
    assert budget.num_held == 50


async def test_the_largest_body_is_taken_alone_and_can_grow():
    budget = BodyBudget(100)
    lease = await held(budget, "a", 80)
    await budget.hold(lease, 300)
    assert budget.num_held == 300
    budget.wait_s = 0.01
    with pytest.raises(Unavailable, match=r"a body of 10 bytes waited 0\.01 s: send it again"):
        await held(budget, "b", 10)
    budget.release(lease)
    await held(budget, "b", 10)


async def test_holding_less_than_before_changes_nothing():
    budget = BodyBudget(100)
    lease = await held(budget, "a", 30)
    await budget.hold(lease, 10)
    assert (lease.num_bytes, budget.num_held) == (30, 30)
