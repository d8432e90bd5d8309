"""A scheduler over a store in memory, and workers that answer at once."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from openrl.config import Config, GatewayConfig, ModelConfig, RpcConfig, SchedulerConfig
from openrl.errors import WorkerLost
from openrl.protocol.runs import RunSpec
from openrl.rpc.messages import (
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
from openrl.store.identities import OPERATOR
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
    is_deaf: bool = False  # takes commands and does nothing
    may_go: asyncio.Event = field(default_factory=asyncio.Event)  # passes end only while it is set

    def __post_init__(self) -> None:
        self.may_go.set()

    async def run(self) -> None:
        await self.connection.send(WorkerReady("w", (MODEL,), 1000, 4, knows_draining=True))
        while True:
            try:
                command = await self.connection.receive()
            except WorkerLost:
                return
            self.commands.append(command)  # pyright: ignore[reportArgumentType]
            match command:
                case _ if self.is_deaf:
                    pass
                case Execute(work_id, _, items):
                    await self.may_go.wait()
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

    async def sweep_sessions(self) -> None:
        await self.scheduler._housekeeping.expire_sessions(self.clock[0])  # pyright: ignore


@asynccontextmanager
async def site(
    session_timeout_s: float = 300.0, limits: SchedulerConfig | None = None, silence_s: float = 30.0
) -> AsyncGenerator[Site]:
    """A tenant "t" with session "s", run "r" and sampler "p"; a scheduler that runs, no worker."""
    clock = [1000.0]
    blobs = MemoryBlobs()
    store = MemoryStore(blobs, lambda: clock[0])
    await store.identities.create_tenant(TenantRow("t", "t", 0.0), OPERATOR)
    await store.create_session(SessionRow("s", "t", clock[0], clock[0]))
    run = RunRow(RunSpec("r", "t", MODEL, 8, 0, True, True, False), "s", 0, 0.0, 0.0, {})
    create = RequestRow("r/0", "t", "s", "create_model", "run:r:0", 0, 0.0, run_id="r", base_model=MODEL)
    await store.create_run(run, create, b"{}")
    await store.create_sampler(SamplerRow("p", "t", "s", MODEL, 0.0, 0))
    config = Config(
        models=(ModelConfig(name=MODEL, path=Path("x")),),
        gateway=GatewayConfig(session_timeout_s=session_timeout_s),
        scheduler=limits or SchedulerConfig(),
        rpc=RpcConfig(silence_s=silence_s),
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
