"""The contract of `store/base.py`, held in memory and over SQL: clients of a sampler, and their samples that ended."""

import asyncio
from collections.abc import Sequence

import pytest

from openrl.errors import NotFound, Unavailable
from openrl.store.base import MAX_ENDED, RequestRow, Store
from tests.store.expectations import refused_as
from tests.store.rows_for_tests import ALICE, BOB, done, request, sample, sampler

FIRST = range(10**9)
SECOND = range(10**9, 2 * 10**9)


@pytest.fixture
async def samplers(store: Store) -> Store:
    """A store with a sampler of each tenant."""
    await store.create_sampler(sampler("p"))
    await store.create_sampler(sampler("q", BOB))
    return store


async def enqueue(store: Store, *seq_ids: int) -> None:
    for seq_id in seq_ids:
        await store.enqueue(sample("p", seq_id), b"p")


def ids(rows: Sequence[RequestRow]) -> list[int]:
    return [row.seq_id for row in rows]


async def test_clients_of_a_sampler_get_different_numbers(samplers: Store):
    numbers = await asyncio.gather(*(samplers.join_sampler(ALICE, "p") for _ in range(5)))
    assert sorted(numbers) == [1, 2, 3, 4, 5]
    assert await samplers.join_sampler(BOB, "q") == 1
    await refused_as(samplers.join_sampler(BOB, "p"), NotFound)
    await refused_as(samplers.join_sampler(ALICE, "nothing"), NotFound)


async def test_samples_are_listed_in_the_order_in_which_they_ended(samplers: Store):
    await enqueue(samplers, 1, 2, 3)
    await samplers.enqueue(request("r1", 1), b"p")
    assert await samplers.ended_samples(ALICE, "p", FIRST, 0, 0.0) == ()
    await samplers.finish([done("p-3"), done("alice-r1-1")])
    await samplers.finish([done("p-1", state="failed"), done("p-3", state="failed")])
    rows = await samplers.ended_samples(ALICE, "p", FIRST, 0, 0.0)
    assert [(row.seq_id, row.state) for row in rows] == [(3, "done"), (1, "failed")]
    assert ids(await samplers.ended_samples(ALICE, "p", FIRST, rows[0].end_position, 0.0)) == [1]
    await samplers.finish([done("p-2")])
    assert ids(await samplers.ended_samples(ALICE, "p", FIRST, rows[1].end_position, 0.0)) == [2]
    assert (await samplers.get_request(ALICE, "alice-r1-1")).end_position == 0


async def test_each_client_hears_of_its_own_samples(samplers: Store):
    await enqueue(samplers, 1, SECOND.start, SECOND.stop)
    await samplers.enqueue(sample("q", 2, BOB), b"p")
    waiting = asyncio.create_task(samplers.ended_samples(ALICE, "p", SECOND, 0, 30.0))
    await samplers.finish([done("p-1"), done(f"p-{SECOND.stop}"), done("q-2")])
    await samplers.finish([done(f"p-{SECOND.start}")])
    assert ids(await waiting) == [SECOND.start]
    assert ids(await samplers.ended_samples(ALICE, "p", FIRST, 0, 0.0)) == [1]
    assert ids(await samplers.ended_samples(BOB, "q", FIRST, 0, 0.0)) == [2]
    await refused_as(samplers.ended_samples(BOB, "p", FIRST, 0, 0.0), NotFound)


async def test_a_wait_ends_with_the_first_end_or_with_nothing(samplers: Store):
    await enqueue(samplers, *range(4))
    assert await samplers.ended_samples(ALICE, "p", FIRST, 0, 0.05) == ()
    waiting = asyncio.create_task(samplers.ended_samples(ALICE, "p", FIRST, 0, 30.0))
    await asyncio.sleep(0.05)
    await samplers.finish([done("p-2"), done("p-0")])
    async with asyncio.timeout(10.0):
        assert ids(await waiting) == [2, 0]


async def test_nobody_misses_an_end_however_reads_and_ends_interleave(samplers: Store):
    await enqueue(samplers, *range(60))
    heard: list[int] = []

    async def listen() -> None:
        after = 0
        while len(heard) < 60:
            rows = await samplers.ended_samples(ALICE, "p", FIRST, after, 30.0)
            heard.extend(ids(rows))
            after = rows[-1].end_position

    async with asyncio.timeout(30.0), asyncio.TaskGroup() as group:
        group.create_task(listen())
        for n in range(60):
            group.create_task(samplers.finish([done(f"p-{n}")]))
            await asyncio.sleep(0.001 * (n % 3))
    assert sorted(heard) == list(range(60))


async def test_a_long_list_comes_in_pieces(samplers: Store):
    await asyncio.gather(*(samplers.enqueue(sample("p", n), b"p") for n in range(MAX_ENDED + 1)))
    await samplers.finish([done(f"p-{n}") for n in range(MAX_ENDED + 1)])
    first = await samplers.ended_samples(ALICE, "p", FIRST, 0, 0.0)
    assert ids(first) == list(range(MAX_ENDED))
    assert ids(await samplers.ended_samples(ALICE, "p", FIRST, first[-1].end_position, 0.0)) == [MAX_ENDED]


async def test_a_closing_store_ends_the_wait(samplers: Store):
    waiting = asyncio.create_task(samplers.ended_samples(ALICE, "p", FIRST, 0, 30.0))
    await asyncio.sleep(0.05)
    await samplers.close()
    await refused_as(waiting, Unavailable)


async def test_results_that_their_client_has_are_let_go(samplers: Store):
    await enqueue(samplers, 1, 2, 3)
    await samplers.enqueue(sample("q", 1, BOB), b"p")
    await samplers.finish([done("p-1"), done("p-2"), done("q-1")])
    await samplers.release_results(ALICE, "p", ["p-1", "q-1", "nothing"])
    await samplers.release_results(BOB, "q", ["p-2"])
    await samplers.prune(0.0)
    kept = {each: (await samplers.get_request(ALICE, each)).result_ref for each in ("p-1", "p-2")}
    assert kept == {"p-1": "", "p-2": "r:0:0"}
    assert (await samplers.get_request(BOB, "q-1")).result_ref == "r:0:0"


async def test_results_are_let_go_once_they_are_many(samplers: Store):
    await enqueue(samplers, *range(4))
    await samplers.finish([done(f"p-{n}") for n in range(3)])
    await samplers.release_results(ALICE, "p", ["p-0", "p-3", *map(str, range(2000))])
    await samplers.finish([done("p-3")])
    await samplers.prune(0.0)
    refs = [(await samplers.get_request(ALICE, f"p-{n}")).result_ref for n in range(3)]
    assert refs == ["", "r:0:0", "r:0:0"]
