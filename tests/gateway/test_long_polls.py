import asyncio

import pytest

from openrl.gateway.long_polls import LongPolls
from openrl.gateway.readiness import Readiness
from openrl.store.cluster import SchedulerStatus
from openrl.store.memory_cluster import MemoryCluster


async def test_polls_that_are_held_end_at_once_and_later_ones_soon():
    polls = LongPolls()
    ended: list[str] = []

    async def poll(name: str) -> None:
        async with polls.hold():
            await asyncio.sleep(30)
        ended.append(name)

    held = asyncio.create_task(poll("held"))
    await asyncio.sleep(0)
    polls.end()
    async with asyncio.timeout(2):
        await held
        await poll("late")
    assert ended == ["held", "late"]


async def test_a_poll_that_has_its_answer_or_fails_is_left_as_it_is():
    polls = LongPolls()
    answer = None
    async with polls.hold():
        answer = 1
    assert answer == 1
    with pytest.raises(TimeoutError):
        async with polls.hold():
            raise TimeoutError
    polls.end()


async def test_a_gateway_is_ready_while_every_model_is_served_and_it_does_not_stop():
    cluster = MemoryCluster()
    readiness = Readiness(cluster, ["a", "b"])
    looking = asyncio.create_task(readiness.run())
    for models, expected in ((("a",), False), (("a", "b", "c"), True)):
        await cluster.publish_status(SchedulerStatus(base_models=models))
        await asyncio.sleep(0.3)
        assert readiness.is_ready() is expected
    readiness.stop()
    assert not readiness.is_ready()
    looking.cancel()
