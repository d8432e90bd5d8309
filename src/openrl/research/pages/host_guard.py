"""Refuses requests whose Host is a stranger's name: no page reaches a local server by DNS rebinding."""

import ipaddress
from collections.abc import Collection

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class HostGuard:
    """Lets through addresses, which no DNS server can point elsewhere, `localhost`, and the names given."""

    def __init__(self, app: ASGIApp, names: Collection[str] = ()) -> None:
        self._app = app
        self._names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"  # the server has neither lifespan nor WebSockets
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) == 1 and self._is_ours(hosts[0]):
            await self._app(scope, receive, send)
            return
        shown = ", ".join(hosts)[:120]
        detail = f"Host is {shown!r}; it must be an address, localhost or a name given with --allow-host"
        await JSONResponse({"detail": detail, "code": "forbidden"}, status_code=403)(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        name = host_name(host)
        return name in self._names or is_address(name)


def host_name(host: str) -> str:
    """Without the port, and IPv6 addresses without their brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def is_address(name: str) -> bool:
    """Whether it is an IP address as digits."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
