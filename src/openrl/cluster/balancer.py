"""Passes a Service's connections to pods that are ready, each to the next one."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Sequence

Backend = tuple[str, int]
Choose = Callable[[str], Sequence[Backend]]
"""Backends that a client with this address may be given at the moment."""
CONNECT_S = 3.0
_CHUNK_BYTES = 2**16
_RESET = struct.pack("ii", 1, 0)


class Balancer:
    """One port of one Service. Bytes go through this process; a client without a backend is refused."""

    def __init__(self, choose: Choose) -> None:
        self._choose = choose
        self._turn = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, address: str, port: int) -> int:
        """Listen; raises OSError where that is not possible. Returns the port, for 0."""
        self._server = await asyncio.start_server(self._accept, address, port)
        return self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Cut all connections."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "it runs as one"
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except asyncio.CancelledError:
            pass  # by `stop`: nobody waits for this task's end but it
        finally:
            self._connections.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        backend = await self._connect(writer.get_extra_info("peername")[0])
        if backend is None:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.close()
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, backend[1]))
                group.create_task(_pump(backend[0], writer))
        finally:
            for each in (writer, backend[1]):
                each.close()

    async def _connect(self, client: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """To the next backend that answers: a pod may be ready and not listen on this port."""
        backends = list(self._choose(client))
        self._turn += 1
        first = self._turn % max(1, len(backends))
        for address, port in (*backends[first:], *backends[:first]):
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(CONNECT_S):
                    return await asyncio.open_connection(address, port)
        return None


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """All bytes of one direction; a broken connection is an end."""
    with contextlib.suppress(OSError):
        while chunk := await source.read(_CHUNK_BYTES):
            target.write(chunk)
            await target.drain()
    with contextlib.suppress(OSError):
        if target.can_write_eof():
            target.write_eof()
