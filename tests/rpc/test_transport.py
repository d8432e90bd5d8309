import asyncio
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from openrl.errors import InvalidRequest, Unauthorized, WorkerLost
from openrl.rpc.messages import CloseRun, Outcome, SampleDone
from openrl.rpc.transport import Connection, connect, create_pair, resolve, serve_workers

SECRET = b"a shared secret"


@asynccontextmanager
async def connected(kind: str, directory: Path) -> AsyncGenerator[tuple[Connection, Connection]]:
    """The scheduler's end and the worker's end."""
    if kind == "local":
        yield create_pair()
        return
    accepted: asyncio.Queue[Connection] = asyncio.Queue()
    done = asyncio.Event()

    async def on_worker(connection: Connection) -> None:
        accepted.put_nowait(connection)
        await done.wait()

    address = f"unix:{directory / 's'}" if kind == "unix" else "tcp:127.0.0.1:0"
    async with serve_workers(address, SECRET, on_worker) as bound:
        worker = await connect(bound, SECRET)
        try:
            yield await accepted.get(), worker
        finally:
            done.set()
            await worker.close()


kinds = pytest.mark.parametrize("kind", ["local", "unix", "tcp"])


@kinds
async def test_messages_arrive_in_order_in_both_directions(kind: str, tmp_path: Path):
    async with connected(kind, tmp_path) as (scheduler, worker):
        for i in range(100):
            await scheduler.send(CloseRun(f"run{i}"))
            await worker.send(SampleDone((Outcome(f"request{i}"),)))
        assert [await worker.receive() for _ in range(100)] == [CloseRun(f"run{i}") for i in range(100)]
        reports = [await scheduler.receive() for _ in range(100)]
        assert reports == [SampleDone((Outcome(f"request{i}"),)) for i in range(100)]


@kinds
async def test_what_was_sent_before_closing_still_arrives(kind: str, tmp_path: Path):
    async with connected(kind, tmp_path) as (scheduler, worker):
        await worker.send(CloseRun("last"))
        await worker.close()
        assert await scheduler.receive() == CloseRun("last")
        with pytest.raises(WorkerLost):
            await scheduler.receive()


@kinds
async def test_a_closed_connection_refuses_to_send_and_receive(kind: str, tmp_path: Path):
    async with connected(kind, tmp_path) as (scheduler, _):
        await scheduler.close()
        with pytest.raises(WorkerLost):
            await scheduler.send(CloseRun("run"))
        with pytest.raises(WorkerLost):
            await scheduler.receive()


async def test_a_megabyte_message_passes(tmp_path: Path):
    async with connected("unix", tmp_path) as (scheduler, worker):
        big = SampleDone(tuple(Outcome(f"request{i}", error="x" * 200) for i in range(5000)))
        sending = asyncio.create_task(worker.send(big))
        assert await scheduler.receive() == big
        await sending


async def test_a_wrong_secret_is_refused_at_both_ends(tmp_path: Path):
    served: list[Connection] = []

    async def on_worker(connection: Connection) -> None:
        served.append(connection)

    async with serve_workers(f"unix:{tmp_path / 's'}", SECRET, on_worker) as address:
        with pytest.raises(Unauthorized):
            await connect(address, b"another")
    assert served == []


async def test_a_peer_that_speaks_something_else_is_hung_up_on(tmp_path: Path):
    async def on_worker(connection: Connection) -> None:
        raise AssertionError("must not be reached")

    async with serve_workers("tcp:127.0.0.1:0", SECRET, on_worker) as address:
        host, port = address.removeprefix("tcp:").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\n" * 10)
        assert len(await reader.read()) == 32  # the nonce, then the end
        writer.close()
        await writer.wait_closed()


async def test_garbage_after_the_handshake_surfaces_as_worker_lost(tmp_path: Path):
    async with connected("unix", tmp_path) as (scheduler, worker):
        worker._writer.write(b"\x00\x00\x00\x02\xc1\xc1")  # pyright: ignore
        with pytest.raises(WorkerLost, match="malformed"):
            await scheduler.receive()


async def test_a_failing_handler_ends_the_server(tmp_path: Path):
    async def on_worker(connection: Connection) -> None:
        raise RuntimeError("bug")

    async def serve() -> None:
        async with serve_workers(f"unix:{tmp_path / 's'}", SECRET, on_worker) as address:
            worker = await connect(address, SECRET)
            try:
                await asyncio.sleep(5)
            finally:
                await worker.close()

    with pytest.raises(ExceptionGroup):
        await serve()


async def test_nobody_listening_is_worker_lost(tmp_path: Path):
    with pytest.raises(WorkerLost):
        await connect(f"unix:{tmp_path / 's'}", SECRET)


@pytest.mark.parametrize("address", ["", "unix:", "tcp:", "tcp:host", "tcp:host:port", "http://x"])
async def test_malformed_addresses_are_refused(address: str):
    with pytest.raises(InvalidRequest, match="neither"):
        await connect(address, SECRET)


async def test_a_name_of_several_machines_stands_for_each(monkeypatch: pytest.MonkeyPatch):
    known = {"schedulers": ["10.0.0.1", "10.0.0.2"], "fd00::1": ["fd00::1"]}

    async def look_up(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        if host not in known:
            raise socket.gaierror(f"{host} is not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in known[host]]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up, raising=False)
    found = await resolve("tcp:schedulers:7600, unix:/run/x, tcp:fd00::1:7600,tcp:nobody:1,tcp:schedulers:7600")
    assert found == ["tcp:10.0.0.1:7600", "tcp:10.0.0.2:7600", "unix:/run/x", "tcp:fd00::1:7600", "tcp:nobody:1"]


async def test_a_resolved_name_can_be_connected_to():
    async with serve_workers("tcp:127.0.0.1:0", b"s" * 16, lambda connection: connection.close()) as address:
        port = address.rpartition(":")[2]
        assert f"tcp:127.0.0.1:{port}" in await resolve(f"tcp:localhost:{port}")


async def test_twenty_thousand_small_messages_pass_in_a_second(tmp_path: Path):
    count = 20_000
    async with connected("unix", tmp_path) as (scheduler, worker):

        async def send_all() -> None:
            for i in range(count):
                await worker.send(SampleDone((Outcome(f"request{i}", result_ref="pack:0:100", num_tokens=64),)))
                if i % 50 == 49:
                    await asyncio.sleep(0)

        started = time.perf_counter()
        sending = asyncio.create_task(send_all())
        for _ in range(count):
            await scheduler.receive()
        await sending
        rate = count / (time.perf_counter() - started)
    print(f"{rate:.0f} messages/s")
    assert rate > 20_000  # both ends share one core here
