"""How full the server says it is (docs/api.md, `GET load`)."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.error import URLError
from urllib.request import Request, urlopen

from openrl.errors import Unavailable

_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Load:
    """Of all tenants together."""

    device_duty: float | None  # 0 to 1; None: the server does not know
    queue_wait_s: float


class LoadSource(Protocol):
    """Tells the load at the moment."""

    async def load(self) -> Load:
        """Raises Unavailable."""
        ...


class ServerLoad:
    """Asks the server."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self._request = Request(  # noqa: S310  # the user's own server
            f"{base_url.rstrip('/')}/api/v1/load", headers={"X-API-Key": api_key}
        )

    async def load(self) -> Load:
        return await asyncio.to_thread(self._ask)

    def _ask(self) -> Load:
        try:
            with urlopen(self._request, timeout=_TIMEOUT_S) as reply:  # noqa: S310
                told: dict[str, Any] = json.load(reply)
            duty = told["device_duty"]
            return Load(None if duty is None else float(duty), float(told["queue_wait_s"]))
        except (URLError, TimeoutError, ConnectionError) as error:
            raise Unavailable(f"the server's load cannot be read: {error}") from error
        except (ValueError, LookupError, TypeError) as error:
            raise Unavailable(f"the server's load cannot be read: its answer is another one ({error!r})") from error
