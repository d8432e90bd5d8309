"""Connections between the scheduler and its workers: in one process, over a Unix socket, over TCP.

Addresses are "unix:/path/to/socket" or "tcp:host:port". A worker calls `connect`; the scheduler
serves with `serve_workers` and gets one Connection per worker. Both ends hold the same secret.

A Connection belongs to one event loop: from another thread, hand messages over with
`loop.call_soon_threadsafe`.
"""

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Protocol

from openrl.errors import InvalidRequest, Unauthorized, Unavailable, WorkerLost
from openrl.rpc.codec import FrameReader, Message, encode_frame
from openrl.rpc.handshake import HANDSHAKE_TIMEOUT_S, prove_to_scheduler, prove_to_worker

_READ_BYTES = 2**18
_HIGH_WATER_BYTES = 2**20
_CLOSE_TIMEOUT_S = 5.0
_CONNECT_TIMEOUT_S = 5.0


class Connection(Protocol):
    """An ordered, reliable channel of messages to the other side."""

    async def send(self, message: Message) -> None:
        """Queue a message; waits only when the other side is far behind. Raises WorkerLost once closed."""
        ...

    async def receive(self) -> Message:
        """The next message; raises WorkerLost when the other side is gone and all it sent was read."""
        ...

    async def close(self) -> None:
        """Send what is queued and hang up; the other side's `receive` then raises WorkerLost."""
        ...


class LocalConnection:
    """One end of an in-process pair; messages are passed by reference."""

    def __init__(self, inbox: asyncio.Queue[Message | None], outbox: asyncio.Queue[Message | None]) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._is_closed = False

    async def send(self, message: Message) -> None:
        if self._is_closed:
            raise WorkerLost("the connection is closed")
        self._outbox.put_nowait(message)

    async def receive(self) -> Message:
        message = None if self._is_closed and self._inbox.empty() else await self._inbox.get()
        if message is None:
            self._is_closed = True
            raise WorkerLost("the other side closed the connection")
        return message

    async def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._inbox.put_nowait(None)
            self._outbox.put_nowait(None)


def create_pair() -> tuple[Connection, Connection]:
    """Two connected ends within one event loop."""
    forth: asyncio.Queue[Message | None] = asyncio.Queue()
    back: asyncio.Queue[Message | None] = asyncio.Queue()
    return LocalConnection(back, forth), LocalConnection(forth, back)


class StreamConnection:
    """Framed messages over a byte stream; what is sent within one loop turn leaves in one write."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._frames = FrameReader()
        self._received: deque[Message] = deque()
        self._unsent: list[bytes] = []
        self._is_closed = False
        writer.transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)

    async def send(self, message: Message) -> None:
        if self._is_closed or self._writer.transport.is_closing():
            raise WorkerLost("the connection is closed")
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(encode_frame(message))
        if self._writer.transport.get_write_buffer_size() > _HIGH_WATER_BYTES:
            await self._drain()

    async def receive(self) -> Message:
        while not self._received:
            try:
                data = await self._reader.read(_READ_BYTES)
                self._received.extend(self._frames.feed(data))
            except (OSError, InvalidRequest) as error:
                raise WorkerLost(f"the connection broke: {error}") from error
            if not data:
                raise WorkerLost("the other side closed the connection")
        return self._received.popleft()

    async def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._flush()
            self._writer.close()
            try:
                async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                    await self._writer.wait_closed()
            except OSError:  # a timeout among them: the other side reads no more
                self._writer.transport.abort()

    def _flush(self) -> None:
        if self._unsent and not self._writer.transport.is_closing():
            self._writer.write(b"".join(self._unsent))
        self._unsent.clear()

    async def _drain(self) -> None:
        try:
            await self._writer.drain()
        except OSError as error:
            raise WorkerLost(f"the connection broke: {error}") from error


@contextlib.asynccontextmanager
async def serve_workers(
    address: str, secret: bytes, on_worker: Callable[[Connection], Awaitable[None]]
) -> AsyncGenerator[str]:
    """Listen until the block ends; gives the address with the port that was taken for "tcp:host:0".

    `on_worker` runs once per worker that knows the secret; its connection is closed when it returns.
    An exception from it ends the block. Peers that fail the handshake are hung up on. Raises Unavailable where the
    address cannot be listened on.
    """
    async with asyncio.TaskGroup() as group:
        tasks: set[asyncio.Task[None]] = set()
        is_open = True

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if not is_open:
                writer.close()
                return
            task = group.create_task(_serve_one(reader, writer, secret, on_worker))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            task.add_done_callback(lambda _: writer.close())  # also of one that was cancelled before it began

        try:
            server = await _listen(address, accept)
        except OSError as error:
            raise Unavailable(f"cannot listen for workers on {address}: {error}") from error
        try:
            yield _bound_address(address, server)
        finally:
            is_open = False
            server.close()
            for task in tasks:
                task.cancel()


async def resolve(addresses: str) -> list[str]:
    """What `addresses`, with commas between, stand for; a name with several IP addresses (a headless Service of
    Kubernetes) stands for each of them, one that nobody knows for itself."""
    found: list[str] = []
    for address in (each.strip() for each in addresses.split(",")):
        kind, place = _parse(address)
        if kind == "unix":
            found.append(address)
            continue
        host, _, port = place.rpartition(":")
        try:
            infos = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        except OSError:
            found.append(address)
        else:
            found += [f"tcp:{info[4][0]}:{port}" for info in infos]
    return list(dict.fromkeys(found))


async def connect(address: str, secret: bytes) -> Connection:
    """Connect a worker to its scheduler; raises WorkerLost if nobody answers, Unauthorized on a wrong secret."""
    try:
        kind, place = _parse(address)
        if kind == "unix":
            reader, writer = await asyncio.open_unix_connection(place)
        else:
            host, _, port = place.rpartition(":")
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):  # nobody answers for a machine that is gone
                reader, writer = await asyncio.open_connection(host, int(port))
    except OSError as error:  # a timeout among them
        raise WorkerLost(f"no scheduler at {address}: {error}") from error
    try:
        _keep_alive(writer)
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            await prove_to_scheduler(reader, writer, secret)
    except (OSError, EOFError) as error:  # TimeoutError is an OSError
        writer.close()
        raise Unauthorized(f"the scheduler at {address} refused the handshake") from error
    except BaseException:
        writer.close()
        raise
    return StreamConnection(reader, writer)


async def _serve_one(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    secret: bytes,
    on_worker: Callable[[Connection], Awaitable[None]],
) -> None:
    connection = StreamConnection(reader, writer)
    try:
        _keep_alive(writer)
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                await prove_to_worker(reader, writer, secret)
        except (OSError, EOFError, Unauthorized):
            return
        await on_worker(connection)
    finally:
        await connection.close()


async def _listen(address: str, accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]) -> asyncio.Server:
    kind, place = _parse(address)
    if kind == "tcp":
        host, _, port = place.rpartition(":")
        return await asyncio.start_server(accept, host, int(port))
    server = await asyncio.start_unix_server(accept, place)
    await asyncio.to_thread(Path(place).chmod, 0o600)
    return server


def _parse(address: str) -> tuple[str, str]:
    kind, _, place = address.partition(":")
    if kind == "unix" and place:
        return kind, place
    host, _, port = place.rpartition(":")
    if kind == "tcp" and host and port.isdigit():
        return kind, place
    raise InvalidRequest(f"address {address!r} is neither unix:/path nor tcp:host:port")


def _bound_address(address: str, server: asyncio.Server) -> str:
    if address.startswith("unix:"):
        return address
    host = address.removeprefix("tcp:").rpartition(":")[0]
    return f"tcp:{host}:{server.sockets[0].getsockname()[1]}"


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    """A machine that vanished without a word is noticed by the kernel's probes."""
    sock: socket.socket = writer.get_extra_info("socket")
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
