"""Asks a container: the three kinds of probes, and hooks, which are the same."""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable

from openrl.cluster.pod_spec import Container, Handler, HttpGet

RunInContainer = Callable[[tuple[str, ...]], Awaitable[int]]
"""Runs a command where the container runs; returns its status."""


async def ask(
    handler: Handler, container: Container, address: str, timeout_s: float, run: RunInContainer
) -> tuple[bool, str]:
    """Whether it succeeded in time, and what to say if not."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _ask(handler, container, address, run)
    except TimeoutError:
        return False, f"no answer within {timeout_s:g} s"
    except OSError as error:
        return False, str(error.strerror or error)


async def _ask(handler: Handler, container: Container, address: str, run: RunInContainer) -> tuple[bool, str]:
    if handler.http_get is not None:
        status = await _http_status(handler.http_get, address, container.port(handler.http_get.port))
        return 200 <= status < 400, f"{handler.http_get.path} answered {status}"
    if handler.tcp_socket is not None:
        _, writer = await asyncio.open_connection(address, container.port(handler.tcp_socket.port))
        writer.close()
        return True, ""
    if handler.exec is not None:
        status = await run(handler.exec.command)
        return status == 0, f"{handler.exec.command[0]} ended with status {status}"
    if handler.sleep is not None:
        await asyncio.sleep(handler.sleep.seconds)
    return True, ""


async def _http_status(get: HttpGet, address: str, port: int) -> int:
    """Of a GET on a connection of its own; certificates are not checked, as Kubernetes does not."""
    context = None
    if get.scheme == "HTTPS":
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(address, port, ssl=context)
    try:
        headers = {"Host": f"{address}:{port}", "User-Agent": "openrl-probe", "Connection": "close"}
        headers |= {each.name: each.value for each in get.http_headers}
        lines = [f"GET {get.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        writer.write("\r\n".join(lines).encode())
        first = (await reader.readline()).split()
        return int(first[1]) if len(first) > 1 and first[1].isdigit() else 0
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
