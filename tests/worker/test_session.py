"""A worker that goes from one scheduler to another: it keeps its models, and nothing else."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from openrl.config import Config, RpcConfig
from openrl.errors import WorkerLost
from openrl.rpc.messages import ExecuteDone, Ping, Report, Shutdown, WorkerLeaving, WorkerReady, WorkerStats
from openrl.rpc.transport import Connection, serve_workers
from openrl.store.base import Blobs
from openrl.worker.engines import EngineTable
from openrl.worker.process import WorkerProcess
from openrl.worker.settings import WorkerSettings
from tests.worker.rig import Rig, execute, open_run

SECRET = b"s" * 32


class Site:
    """Two addresses at which a scheduler may listen, and a worker with fake engines that knows both."""

    def __init__(self, root: Path, silence_s: float) -> None:
        self.rig = Rig(root / "blobs")
        self.addresses = [f"unix:{root}/first", f"unix:{root}/second"]
        config = Config(data_dir=root, rpc=RpcConfig(silence_s=silence_s))
        settings = WorkerSettings(
            worker_id="w0",
            address=", ".join(self.addresses),
            secret=SECRET.hex(),
            blobs_dir=root / "blobs",
            reconnects=True,
            ready_file=root / "ready",
            config=config,
        )
        self.num_loads = 0
        self.worker = asyncio.ensure_future(WorkerProcess(settings, self.rig.blobs).run(self.load))

    def load(self, config: Config, blobs: Blobs, scratch_dir: Path) -> EngineTable:
        self.num_loads += 1
        return self.rig.engines()

    @contextlib.asynccontextmanager
    async def scheduler(self, place: int) -> AsyncGenerator[Connection]:
        """A scheduler that the worker has found; it hangs up at the end."""
        connections: asyncio.Queue[Connection] = asyncio.Queue()
        ended = asyncio.Event()

        async def on_worker(connection: Connection) -> None:
            connections.put_nowait(connection)
            await ended.wait()

        async with serve_workers(self.addresses[place], SECRET, on_worker):
            async with asyncio.timeout(10):
                connection = await connections.get()
            assert await connection.receive() == WorkerReady("w0", ("tiny",), 512, 32, knows_draining=True)
            yield connection
            ended.set()
            await connection.close()


@contextlib.asynccontextmanager
async def site(root: Path, silence_s: float = 30.0) -> AsyncGenerator[Site]:
    site = Site(root, silence_s)
    try:
        yield site
    finally:
        site.worker.cancel()
        await asyncio.wait([site.worker])
        site.rig.blobs.close()


async def reports(connection: Connection, count: int = 1000) -> list[Report]:
    """What comes, heartbeats aside, until so many came or the connection ended."""
    found: list[Report] = []
    with contextlib.suppress(WorkerLost):
        while len(found) < count:
            message = await connection.receive()
            if not isinstance(message, WorkerStats):
                found.append(message)  # pyright: ignore[reportArgumentType]
    return found


async def test_nothing_of_the_old_scheduler_reaches_the_new_one_and_the_models_stay(tmp_path: Path):
    async with site(tmp_path) as s:
        async with s.scheduler(0) as first:
            await first.send(open_run())
            await first.send(execute(s.rig.forward_backward(1), work_id=1))
            [done] = await reports(first, 1)
            assert isinstance(done, ExecuteDone)
            assert (tmp_path / "ready").exists()
            await first.send(s.rig.sample("long", [1], max_tokens=10**9))
            for work_id in range(2, 50):
                await first.send(execute(s.rig.forward_backward(work_id, num_datums=500), work_id=work_id))
        async with s.scheduler(1) as second:
            assert not s.rig.training.weights
            assert not s.rig.sampling.jobs
            await second.send(execute(s.rig.forward_backward(2), work_id=100))
            [refused] = await reports(second, 1)
            assert isinstance(refused, ExecuteDone)
            assert refused.work_id == 100
            assert "not open on this worker" in refused.outcomes[0].error
            await second.send(Shutdown())
            assert await reports(second) == [WorkerLeaving()]
        await s.worker
        assert s.num_loads == 1


async def test_a_scheduler_that_says_nothing_is_left_and_one_that_pings_is_not(tmp_path: Path):
    async with site(tmp_path, silence_s=1.0) as s:
        async with s.scheduler(0) as silent:
            for _ in range(3):
                await asyncio.sleep(0.5)
                await silent.send(Ping())
            left = asyncio.create_task(reports(silent))
            await asyncio.sleep(0.5)
            assert not left.done()
            async with asyncio.timeout(5):
                assert await left == []
        async with s.scheduler(1) as second:
            await second.send(Shutdown())
            assert await reports(second) == [WorkerLeaving()]


async def test_the_heartbeat_tells_how_long_a_step_has_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started, release = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    async with site(tmp_path) as s:

        def hang(*_: object) -> None:
            loop.call_soon_threadsafe(started.set)
            release.wait(20)

        monkeypatch.setattr(s.rig.training, "open_run", hang)
        async with s.scheduler(0) as scheduler:
            assert await age(scheduler) == 0.0
            await scheduler.send(open_run())
            await started.wait()
            first = await age(scheduler)
            assert 0.0 < first < await age(scheduler)
            release.set()


async def age(connection: Connection) -> float:
    while True:
        if isinstance(message := await connection.receive(), WorkerStats):
            return message.step_age_s
