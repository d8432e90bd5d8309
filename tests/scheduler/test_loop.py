import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog.testing

from openrl.config import Config, GatewayConfig, ModelConfig
from openrl.errors import WorkerLost
from openrl.protocol.runs import RunSpec
from openrl.rpc.messages import (
    Cancel,
    Command,
    Execute,
    ExecuteDone,
    Outcome,
    RunSnapshotted,
    Sample,
    SampleDone,
    SavedCheckpoint,
    Shutdown,
    SnapshotRun,
    WorkerLeaving,
    WorkerReady,
    WorkItem,
)
from openrl.rpc.transport import Connection, create_pair
from openrl.scheduler.loop import Scheduler
from openrl.store.base import RequestRow, RunRow, SamplerRow, SessionRow, TenantRow
from openrl.store.memory import MemoryStore
from openrl.store.memory_blobs import MemoryBlobs

MODEL = "tiny"


@dataclass
class FakeWorker:
    """Answers every command at once; `saves` says what a request's outcome carries."""

    connection: Connection
    blobs: MemoryBlobs
    commands: list[Command] = field(default_factory=list[Command])
    holds_samples: bool = False
    busy_s: float = 1.0
    saves: dict[str, SavedCheckpoint] = field(default_factory=dict[str, SavedCheckpoint])
    last_seq: dict[str, int] = field(default_factory=dict[str, int])

    async def run(self) -> None:
        await self.connection.send(WorkerReady("w", (MODEL,), 1000, 4))
        while True:
            try:
                command = await self.connection.receive()
            except WorkerLost:
                return
            self.commands.append(command)  # pyright: ignore[reportArgumentType]
            match command:
                case Execute(work_id, _, items):
                    self.last_seq.update((item.run_id, item.seq_id) for item in items)
                    await self.connection.send(ExecuteDone(work_id, tuple(self._outcome(item) for item in items)))
                case Sample(item) if not self.holds_samples:
                    await self.connection.send(SampleDone((self._outcome(item),)))
                case SnapshotRun(run_id):
                    key = f"snapshots/{run_id}/{self.last_seq[run_id]}"
                    self.blobs.put_object(key, {"adapter": b"x"})
                    await self.connection.send(RunSnapshotted(run_id, self.last_seq[run_id], key))
                case Shutdown():
                    await self.connection.send(WorkerLeaving())
                    await self.connection.close()
                    return
                case _:
                    pass

    def _outcome(self, item: WorkItem) -> Outcome:
        if item.is_replay:
            return Outcome(item.request_id, busy_s=self.busy_s)
        (ref,) = self.blobs.put_payloads([b"result of " + item.request_id.encode()])
        return Outcome(
            item.request_id, ref, checkpoint=self.saves.get(item.request_id), num_tokens=7, busy_s=self.busy_s
        )


@dataclass
class Site:
    store: MemoryStore
    blobs: MemoryBlobs
    scheduler: Scheduler
    workers: list[FakeWorker]
    attach: Callable[[], FakeWorker]
    clock: list[float]

    async def submit(self, run_id: str, seq_id: int, kind: str) -> str:
        row = RequestRow(
            f"{run_id}/{seq_id}",
            "t",
            "s",
            kind,  # pyright: ignore[reportArgumentType]
            f"run:{run_id}:{seq_id}",
            seq_id,
            0.0,
            run_id=run_id,
            base_model=MODEL,
            num_tokens=10,
        )
        return (await self.store.enqueue(row, b"payload")).request_id

    async def finished(self, request_id: str) -> RequestRow:
        row = await self.store.wait_finished("t", request_id, 5.0)
        assert row is not None, f"{request_id} did not finish"
        return row


@asynccontextmanager
async def site(session_timeout_s: float = 300.0) -> AsyncGenerator[Site]:
    """A tenant "t" with session "s", run "r" and sampler "p"; a scheduler that runs, no worker."""
    clock = [1000.0]
    blobs = MemoryBlobs()
    store = MemoryStore(blobs, lambda: clock[0])
    await store.create_tenant(TenantRow("t", "t", 0.0))
    await store.create_session(SessionRow("s", "t", clock[0], clock[0]))
    run = RunRow(RunSpec("r", "t", MODEL, 8, 0, True, True, False), "s", 0, 0.0, 0.0, {})
    create = RequestRow("r/0", "t", "s", "create_model", "run:r:0", 0, 0.0, run_id="r", base_model=MODEL)
    await store.create_run(run, create, b"{}")
    await store.create_sampler(SamplerRow("p", "t", "s", MODEL, 0.0, 0))
    config = Config(
        models=(ModelConfig(name=MODEL, path=Path("x")),), gateway=GatewayConfig(session_timeout_s=session_timeout_s)
    )
    scheduler = Scheduler(store, blobs, config, lambda: clock[0])
    workers: list[FakeWorker] = []
    async with asyncio.TaskGroup() as group:

        def attach() -> FakeWorker:
            ours, theirs = create_pair()
            workers.append(FakeWorker(theirs, blobs))
            tasks.append(group.create_task(workers[-1].run()))
            tasks.append(group.create_task(scheduler.serve_worker(ours)))
            return workers[-1]

        tasks = [group.create_task(scheduler.run())]
        try:
            yield Site(store, blobs, scheduler, workers, attach, clock)
        finally:
            for task in tasks:
                task.cancel()


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
        s.scheduler.session_ended("s")
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
        s.scheduler.request_cancelled("x")
        assert (await s.finished("x")).state == "cancelled"
        await asyncio.sleep(0.01)
        assert worker.commands[-1] == Cancel("x")


async def test_silent_sessions_are_expired_but_not_before_clients_had_time_to_return():
    async with site(session_timeout_s=60.0) as s:
        s.attach()
        await s.finished("r/0")
        s.clock[0] += 1000
        await s.scheduler._housekeeping.expire_sessions(s.clock[0])  # pyright: ignore
        await asyncio.sleep(0.05)
        assert (await s.store.get_session("t", "s")).state == "expired"
        run, _, _ = await s.store.run_progress("r")
        assert run.is_closed


async def test_what_an_expired_run_did_is_kept_as_a_checkpoint():
    async with site(session_timeout_s=60.0) as s:
        s.attach()
        await s.submit("r", 1, "forward_backward")
        await s.finished(await s.submit("r", 2, "optim_step"))
        s.clock[0] += 1000
        await s.scheduler._housekeeping.expire_sessions(s.clock[0])  # pyright: ignore
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
