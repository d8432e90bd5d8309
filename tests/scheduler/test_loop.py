import asyncio
from dataclasses import replace

import pytest
import structlog.testing

from openrl.rpc.messages import Cancel, Execute, Sample, SavedCheckpoint, Shutdown
from openrl.store.base import RequestRow
from openrl.store.cluster import Signal
from tests.scheduler.site import MODEL, site


async def test_requests_finish_with_their_results():
    async with site() as s:
        s.attach()
        await s.submit("r", 1, "forward_backward")
        row = await s.finished("r/1")
        assert (row.state, s.blobs.get_payload(row.result_ref)) == ("done", b"result of r/1")


async def test_the_backlog_of_an_earlier_scheduler_is_taken_up():
    async with site() as s:
        assert not s.scheduler.is_ready()
        await asyncio.sleep(0.01)
        s.attach()
        assert (await s.finished("r/0")).state == "done"
        assert s.scheduler.is_ready()


async def test_a_worker_that_goes_away_is_replaced_and_the_run_replayed():
    async with site() as s:
        first = s.attach()
        await s.submit("r", 1, "forward_backward")
        await s.finished("r/1")
        await first.connection.close()
        await s.submit("r", 2, "optim_step")
        second = s.attach()
        assert (await s.finished("r/2")).state == "done"
        executed = [item for c in second.commands if isinstance(c, Execute) for item in c.items]
        assert [(item.seq_id, item.is_replay) for item in executed] == [(0, True), (1, True), (2, False)]


async def test_snapshots_are_recorded_and_older_files_deleted():
    async with site() as s:
        s.attach().busy_s = 20.0
        for seq_id in range(1, 8):
            await s.submit("r", seq_id, "forward_backward")
            await s.finished(f"r/{seq_id}")
        await asyncio.sleep(0.05)
        run, _, _ = await s.store.run_progress("r")
        assert run.snapshot_seq_id >= 5
        assert run.snapshot_key is not None
        assert s.blobs.list_object(run.snapshot_key)
        assert [key for key in s.blobs._objects if key.startswith("snapshots/")] == [run.snapshot_key]  # pyright: ignore


async def test_a_named_save_becomes_a_checkpoint_and_replaces_the_files_of_the_old_one():
    async with site() as s:
        worker = s.attach()
        for seq_id in (1, 2):
            key = f"checkpoints/r/weights/a/{seq_id}"
            s.blobs.put_object(key, {"f": b"1"})
            worker.saves[f"r/{seq_id}"] = SavedCheckpoint("r", "weights", "a", key, 1, user_metadata={"k": "v"})
            await s.submit("r", seq_id, "save_weights")
            await s.finished(f"r/{seq_id}")
        await asyncio.sleep(0.05)
        row = await s.store.get_checkpoint("t", "r", "weights", "a")
        assert (row.key, row.tenant_id, row.user_metadata) == (key, "t", {"k": "v"})
        assert "checkpoints/r/weights/a/1" not in s.blobs._objects  # pyright: ignore


async def test_an_unnamed_save_becomes_a_sampler_whose_files_go_with_the_session():
    async with site() as s:
        worker = s.attach()
        s.blobs.put_object("k", {"f": b"1"})
        worker.saves["r/1"] = SavedCheckpoint(
            "r", "sampler_weights", "", "k", 1, sampler_id="s:sample:3", sampling_session_seq_id=3
        )
        await s.submit("r", 1, "save_weights_for_sampler")
        await s.finished("r/1")
        sampler = await s.store.get_sampler("t", "s:sample:3")
        assert (sampler.base_model, sampler.session_id, sampler.is_ephemeral) == (MODEL, "s", True)
        await s.store.end_session("t", "s", "finished", "done")
        await s.store.cluster.tell(Signal("session_ended", "s"))
        await asyncio.sleep(0.05)
        assert "k" not in s.blobs._objects  # pyright: ignore
        run, _, _ = await s.store.run_progress("r")
        assert run.is_closed
        assert run.snapshot_key is not None


async def test_a_cancelled_sample_leaves_its_worker():
    async with site() as s:
        worker = s.attach()
        worker.holds_samples = True
        sample = RequestRow(
            "x", "t", "s", "sample", "sampler:p:1", 1, 0.0, sampler_id="p", base_model=MODEL, num_sequences=1
        )
        await s.store.enqueue(sample, b"payload")
        while not any(isinstance(command, Sample) for command in worker.commands):
            await asyncio.sleep(0.005)
        await s.store.cluster.tell(Signal("cancel", "x"))
        assert (await s.finished("x")).state == "cancelled"
        await asyncio.sleep(0.01)
        assert worker.commands[-1] == Cancel("x")


async def test_silent_sessions_are_expired_but_not_before_clients_had_time_to_return():
    async with site(session_timeout_s=60.0) as s:
        s.attach()
        await s.finished("r/0")
        s.clock[0] += 1000
        await s.sweep_sessions()
        await s.sweep_sessions()
        await asyncio.sleep(0.05)
        assert (await s.store.get_session("t", "s")).state == "expired"
        run, _, _ = await s.store.run_progress("r")
        assert run.is_closed


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
async def test_a_jump_of_a_clock_ends_no_session_that_is_heard_of(jump_s: float):
    async with site(session_timeout_s=60.0) as s:
        for now in range(1010, 1100, 10):  # the scheduler's clock, or a gateway's, is wrong by an hour
            await s.store.heartbeat("t", "s", now - max(jump_s, 0.0))
            s.clock[0] = now - min(jump_s, 0.0)
            await s.sweep_sessions()
        assert (await s.store.get_session("t", "s")).state == "active"


async def test_what_an_expired_run_did_is_kept_as_a_checkpoint():
    async with site(session_timeout_s=60.0) as s:
        s.attach()
        await s.submit("r", 1, "forward_backward")
        await s.finished(await s.submit("r", 2, "optim_step"))
        s.clock[0] += 1000
        await s.sweep_sessions()
        await s.sweep_sessions()
        await asyncio.sleep(0.05)
        (kept,) = (await s.store.list_checkpoints("t", 10, 0)).items
        assert (kept.run_id, kept.kind, kept.name, kept.expires_at) == ("r", "weights", "expired-000002", 606800.0)
        assert s.blobs.get_object(kept.key) == {"adapter": b"x"}
        assert kept.size_bytes == 1


async def test_expired_checkpoints_are_deleted_with_their_files():
    async with site() as s:
        worker = s.attach()
        s.blobs.put_object("k", {"f": b"1"})
        saved = SavedCheckpoint("r", "weights", "a", "k", 1)
        worker.saves["r/1"] = replace(saved, expires_at=s.clock[0] + 10)
        await s.submit("r", 1, "save_weights")
        await s.finished("r/1")
        s.clock[0] += 100
        await s.scheduler._housekeeping.delete_expired_checkpoints(s.clock[0])  # pyright: ignore
        assert "k" not in s.blobs._objects  # pyright: ignore


async def test_stopping_lets_workers_finish_and_ends_the_run():
    async with site() as s:
        worker = s.attach()
        await s.finished("r/0")
        with structlog.testing.capture_logs() as logs:
            await asyncio.wait_for(s.scheduler.stop(), 5.0)
        assert worker.commands[-1] == Shutdown()
        assert [(log["event"], log["log_level"]) for log in logs] == [("worker left", "info")]


async def test_a_worker_that_leaves_without_a_word_is_lost():
    async with site() as s:
        worker = s.attach()
        await s.finished("r/0")
        with structlog.testing.capture_logs() as logs:
            await worker.connection.close()
            while s.scheduler.is_ready():
                await asyncio.sleep(0)
        assert [(log["event"], log["log_level"]) for log in logs] == [("worker lost", "warning")]
