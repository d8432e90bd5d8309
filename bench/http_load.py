"""A lean HTTP/1.1 load generator, so that measuring a server costs less than the server."""

import asyncio
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reply:
    """Status and body of one answer."""

    status: int
    body: bytes


class KeepAliveClient:
    """One connection to the server on loopback; one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        self._reader = reader
        self._writer = writer
        self._head = head

    @classmethod
    async def connect(cls, host: str, port: int, api_key: str) -> "KeepAliveClient":
        """Open a connection that sends this key with every request."""
        reader, writer = await asyncio.open_connection(host, port)
        head = f"Host: {host}\r\nX-API-Key: {api_key}\r\n"
        return cls(reader, writer, head.encode())

    async def post(self, path: str, body: bytes, content_type: bytes = b"application/json") -> Reply:
        """Send a body and wait for the whole answer."""
        self._writer.write(
            b"POST %s HTTP/1.1\r\n%sContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s"
            % (path.encode(), self._head, content_type, len(body), body)
        )
        header = await self._reader.readuntil(b"\r\n\r\n")
        status = int(header[9:12])
        lower = header.lower()
        start = lower.index(b"content-length:") + 15
        length = int(lower[start : lower.index(b"\r\n", start)])
        return Reply(status, await self._reader.readexactly(length))

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        await self._writer.wait_closed()
