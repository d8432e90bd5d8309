import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TypeVar

import pytest

from openrl.config import Config, ModelConfig
from openrl.errors import InvalidRequest, WorkerLost
from openrl.rpc.messages import ExecuteDone, SampleDone, Shutdown, WorkerDraining, WorkerReady, WorkerStats
from openrl.rpc.transport import Connection, serve_workers
from openrl.worker.settings import WorkerSettings
from openrl.worker.supervisor import Supervisor
from tests.worker.rig import Rig, execute, open_run

COMMAND = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
ReportT = TypeVar("ReportT", ExecuteDone, SampleDone, WorkerReady, WorkerStats)
SECRET = b"s" * 32


class FakeScheduler:
    """Takes workers' connections and their reports, in the order they come."""

    def __init__(self, root: Path) -> None:
        self.address = f"unix:{root}/socket"
        self.config = Config(data_dir=root / "data")
        self.connections: asyncio.Queue[Connection] = asyncio.Queue()

    def settings(self, **changes: object) -> WorkerSettings:
        return WorkerSettings(
            worker_id="w0",
            address=self.address,
            secret=SECRET.hex(),
            blobs_dir=self.config.data_dir / "blobs",
            log_level="warning",
            config=self.config,
        ).model_copy(update=changes)

    @contextlib.asynccontextmanager
    async def serving(self, supervisor: Supervisor) -> AsyncGenerator[asyncio.Task[None]]:
        """Listen, and keep a worker."""
        done = asyncio.Event()

        async def on_worker(connection: Connection) -> None:
            self.connections.put_nowait(connection)
            await done.wait()

        async with serve_workers(self.address, SECRET, on_worker):
            running = asyncio.create_task(supervisor.run())
            try:
                yield running
            finally:
                done.set()
                running.cancel()
                await asyncio.wait([running])


async def report(connection: Connection, kind: type[ReportT]) -> ReportT:
    while True:
        if isinstance(message := await connection.receive(), kind):
            return message


@pytest.fixture
def scheduler(tmp_path: Path) -> FakeScheduler:
    return FakeScheduler(tmp_path)


async def test_a_worker_joins_works_sends_heartbeats_and_shows_its_secret_to_nobody(
    scheduler: FakeScheduler, tmp_path: Path
):
    rig = Rig(tmp_path / "data" / "blobs")
    supervisor = Supervisor(scheduler.settings(), COMMAND)
    async with scheduler.serving(supervisor):
        connection = await scheduler.connections.get()
        ready = await connection.receive()
        assert ready == WorkerReady("w0", ("tiny",), 512, 32, knows_draining=True)
        for command in (open_run(), execute(rig.forward_backward(1)), rig.sample("a", [1])):
            await connection.send(command)
        finished: list[ExecuteDone | SampleDone] = []
        while len(finished) < 2:
            if isinstance(message := await connection.receive(), ExecuteDone | SampleDone):
                finished.append(message)
        assert {each.outcomes[0].request_id for each in finished} == {"forward_backward-1", "a"}
        assert all(each.outcomes[0].result_ref for each in finished)
        stats = await report(connection, WorkerStats)
        assert stats.resident_runs == 1
        process = Path(f"/proc/{supervisor.pid}")
        for file in ("cmdline", "environ"):
            assert SECRET.hex() not in (process / file).read_text(errors="replace")
    rig.blobs.close()


async def test_a_killed_worker_comes_back(scheduler: FakeScheduler):
    restarts: list[None] = []
    supervisor = Supervisor(scheduler.settings(), COMMAND, on_restart=lambda: restarts.append(None))
    async with scheduler.serving(supervisor):
        first = await scheduler.connections.get()
        await report(first, WorkerReady)
        killed = supervisor.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        second = await scheduler.connections.get()
        await report(second, WorkerReady)
        assert supervisor.pid not in (None, killed)
        assert len(restarts) == 1


async def test_sigterm_finishes_and_reports_what_is_in_hand(scheduler: FakeScheduler, tmp_path: Path):
    rig = Rig(tmp_path / "data" / "blobs")
    supervisor = Supervisor(scheduler.settings(), COMMAND)
    async with scheduler.serving(supervisor):
        connection = await scheduler.connections.get()
        await connection.receive()
        await connection.send(open_run())
        for seq_id in range(1, 200):
            await connection.send(execute(rig.forward_backward(seq_id), work_id=seq_id))
        await report(connection, ExecuteDone)
        assert supervisor.pid is not None
        os.kill(supervisor.pid, signal.SIGTERM)
        numbers: list[int] = []
        with contextlib.suppress(WorkerLost):
            while True:
                match await connection.receive():
                    case ExecuteDone(work_id):
                        numbers.append(work_id)
                    case WorkerDraining():
                        await connection.send(Shutdown())
                    case _:
                        pass
    assert numbers == list(range(2, 200))
    rig.blobs.close()


async def test_a_worker_ends_with_its_scheduler(scheduler: FakeScheduler):
    supervisor = Supervisor(scheduler.settings(), COMMAND)
    async with scheduler.serving(supervisor):
        connection = await scheduler.connections.get()
        await report(connection, WorkerReady)
        pid = supervisor.pid
        assert pid is not None
        await connection.close()
        while supervisor.pid == pid:
            await asyncio.sleep(0.02)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_a_worker_that_cannot_start_says_why_and_is_not_started_again(scheduler: FakeScheduler, tmp_path: Path):
    config = scheduler.config.model_copy(update={"models": (ModelConfig(name="tiny", path=tmp_path),)})
    supervisor = Supervisor(scheduler.settings(config=config), COMMAND)
    async with scheduler.serving(supervisor) as running:
        with pytest.raises(InvalidRequest, match=r"worker w0 cannot start: model 'tiny': .* is not a Hugging Face"):
            await running
