"""Workers that are lost, stuck, draining or handed over."""

import asyncio
import time
from dataclasses import replace

import pytest

from openrl.config import SchedulerConfig
from openrl.rpc.messages import Execute, OpenRun, Ping, SetDraining, Shutdown, WorkerDraining, WorkerStats
from openrl.store.cluster import Load, SchedulerStatus, Signal
from tests.scheduler.site import MODEL, FakeWorker, site


async def test_a_worker_that_says_nothing_is_given_up_and_its_runs_move():
    async with site(limits=SchedulerConfig(worker_silence_s=1.1)) as s:
        silent = s.attach()
        await s.finished("r/0")
        other = s.attach()
        beating = asyncio.create_task(beat(other, 0.0))
        silent.is_deaf = True
        assert (await s.finished(await s.submit("r", 1, "forward_backward"))).state == "done"
        assert any(isinstance(command, OpenRun) for command in other.commands)
        assert [worker.num_runs for worker in s.scheduler.status().workers] == [1]
        beating.cancel()


async def test_a_worker_whose_step_does_not_end_is_given_up():
    async with site(limits=SchedulerConfig(worker_stuck_s=5.0)) as s:
        stuck = s.attach()
        await s.finished("r/0")
        beating = asyncio.create_task(beat(stuck, 4.9))
        await asyncio.sleep(0.3)
        assert s.scheduler.status().num_workers == 1
        beating.cancel()
        stuck.is_deaf = True
        await s.submit("r", 1, "forward_backward")
        other = s.attach()
        await stuck.connection.send(stats(5.1))
        assert (await s.finished("r/1")).state == "done"
        assert any(isinstance(command, Execute) for command in other.commands)


async def test_workers_are_pinged():
    async with site(silence_s=0.3) as s:
        worker = s.attach()
        await s.finished("r/0")
        await asyncio.sleep(0.35)
        assert worker.commands.count(Ping()) >= 2


async def test_a_draining_worker_hands_its_run_over_with_a_snapshot_and_may_leave():
    async with site() as s:
        first = s.attach()
        await s.finished(await s.submit("r", 1, "forward_backward"))
        second = s.attach()
        await first.connection.send(WorkerDraining())
        assert (await s.finished(await s.submit("r", 2, "optim_step"))).state == "done"
        assert first.commands[-1] == Shutdown()
        executed = [item for c in second.commands if isinstance(c, Execute) for item in c.items]
        assert [(item.seq_id, item.is_replay) for item in executed] == [(2, False)]


async def test_a_worker_that_an_operator_drains_hands_over_stays_empty_and_may_be_used_again():
    async with site() as s:
        first = s.attach()
        await s.finished(await s.submit("r", 1, "forward_backward"))
        await s.store.cluster.tell(Signal("drain_worker", "w"))
        waiting = await s.submit("r", 2, "forward_backward")
        assert await s.store.wait_finished("t", waiting, 0.2) is None
        [worker] = s.scheduler.status().workers
        assert (worker.state, worker.num_runs) == ("drained", 0)
        assert not s.scheduler.is_ready()
        await s.store.cluster.tell(Signal("drain_worker", "nobody"))
        await s.store.cluster.tell(Signal("resume_worker", "w"))
        assert (await s.finished(waiting)).state == "done"
        assert [c.is_draining for c in first.commands if isinstance(c, SetDraining)] == [True, False]
        assert Shutdown() not in first.commands


async def test_handing_over_waits_for_passes_and_lets_workers_live():
    async with site() as s:
        worker = s.attach()
        await s.finished("r/0")
        worker.may_go.clear()
        await s.submit("r", 1, "forward_backward")
        while not any(isinstance(c, Execute) and c.items[0].seq_id == 1 for c in worker.commands):
            await asyncio.sleep(0.005)
        handing_over = asyncio.create_task(s.scheduler.hand_over())
        await s.submit("r", 2, "optim_step")
        await asyncio.sleep(0.05)
        assert not handing_over.done()
        worker.may_go.set()
        async with asyncio.timeout(5):
            await handing_over
        assert (await s.finished("r/1")).state == "done"
        assert Shutdown() not in worker.commands
        assert (await s.store.get_request("t", "r/2")).state == "queued"


async def test_the_status_tells_what_is_served():
    async with site() as s:
        await asyncio.sleep(0.05)
        assert await s.store.cluster.status() == SchedulerStatus()
        worker = s.attach()
        await s.finished("r/0")
        await asyncio.sleep(0.05)
        status = await s.store.cluster.status()
        assert replace(status, workers=()) == SchedulerStatus((MODEL,), num_workers=1)
        assert [(worker.name, worker.pool, worker.state) for worker in status.workers] == [("w", "default", "working")]
        await worker.connection.close()
        await asyncio.sleep(0.05)
        assert await s.store.cluster.status() == SchedulerStatus()


async def test_the_status_tells_how_busy_workers_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("openrl.scheduler.duty.LEAST_S", 0.1)
    async with site() as s:
        worker = s.attach()
        await s.finished("r/0")
        async with asyncio.timeout(60):
            while s.scheduler.status().load != Load(1.0, 0.0):
                await worker.connection.send(replace(stats(0.0), busy_sample_s=2 * time.monotonic()))
                await asyncio.sleep(0.02)
            while (await s.store.cluster.status()).load != Load(1.0, 0.0):
                await asyncio.sleep(0.02)
        await worker.connection.close()
        async with asyncio.timeout(60):
            while s.scheduler.status().load != Load():
                await asyncio.sleep(0.02)


def stats(step_age_s: float) -> WorkerStats:
    return WorkerStats(0.0, 0.0, 0, 0, 0, 0, 0, step_age_s)


async def beat(worker: FakeWorker, step_age_s: float) -> None:
    while True:
        await worker.connection.send(stats(step_age_s))
        await asyncio.sleep(0.05)
