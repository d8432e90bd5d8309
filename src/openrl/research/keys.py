"""The key that an attempt reaches the server with."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from openrl.errors import InvalidRequest, Unavailable
from openrl.telemetry.logs import get_logger

_log = get_logger(__name__)
_TIMEOUT_S = 30.0


class Keys(Protocol):
    """Gives keys for the time of an attempt."""

    def key(self, project_id: str) -> AbstractAsyncContextManager[str | None]:
        """None: the one of the environment."""
        ...


class OwnKey:
    """Attempts have the key of whoever runs the study."""

    @asynccontextmanager
    async def key(self, project_id: str) -> AsyncGenerator[None]:  # noqa: ARG002
        yield


class ProjectKeys:
    """A key of the attempt's project alone, revoked at its end; making one takes an admin's key (docs/tenants.md)."""

    def __init__(self, base_url: str, api_key: str, lifetime_s: float) -> None:
        self._url = f"{base_url.rstrip('/')}/api/v1/admin/keys"
        self._headers = {"X-API-Key": api_key, "Content-Type": "application/json"}
        self._lifetime_s = lifetime_s

    @asynccontextmanager
    async def key(self, project_id: str) -> AsyncGenerator[str]:
        body = {"label": "study", "role": "member", "project_id": project_id, "ttl_seconds": int(self._lifetime_s)}
        made = await asyncio.to_thread(self._send, "POST", "", body)
        try:
            yield made["key"]
        finally:
            with contextlib.suppress(Unavailable, InvalidRequest):  # it ends by itself
                await asyncio.to_thread(self._send, "DELETE", f"/{made['key_id']}", None)

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        request = Request(self._url + path, content, self._headers, method=method)  # noqa: S310  # the user's own server
        try:
            with urlopen(request, timeout=_TIMEOUT_S) as reply:  # noqa: S310
                return json.load(reply) if reply.status == 200 else None
        except HTTPError as error:
            if error.code in (401, 403):
                raise InvalidRequest(
                    f"the server makes no key for an attempt ({error.code}): what an agent wrote has a key of its own "
                    "project, which an admin's TINKER_API_KEY can make"
                ) from None
            raise Unavailable(f"the server makes no key for an attempt: {error}") from error
        except (URLError, TimeoutError) as error:
            raise Unavailable(f"the server makes no key for an attempt: {error}") from error
