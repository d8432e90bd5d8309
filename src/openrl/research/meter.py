"""What attempts used, as the server counts it: the same for one alone and for many that share a GPU."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from openrl.errors import Unavailable
from openrl.research.journal import Usage

_HOUR = timedelta(hours=1)
_MAX_WINDOW = timedelta(days=13)  # of one question to the server
_TIMEOUT_S = 30.0


class Meter(Protocol):
    """Tells what projects used since a time."""

    async def usage(self, project_ids: Collection[str], since: float) -> Mapping[str, Usage]:
        """By project; those that used nothing may be missing. Raises Unavailable."""
        ...


class NoMeter:
    """For commands that use no server."""

    async def usage(self, project_ids: Collection[str], since: float) -> Mapping[str, Usage]:  # noqa: ARG002
        return {}


class ServerMeter:
    """Reads the billing events of a server (tinker-api 4.9); one that counts no device time gives tokens alone."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self._url = f"{base_url.rstrip('/')}/api/v1/billing/usage/events"
        self._headers = {"X-API-Key": api_key}

    async def usage(self, project_ids: Collection[str], since: float) -> Mapping[str, Usage]:
        found: defaultdict[str, Usage] = defaultdict(Usage)
        first, end = _floor(datetime.fromtimestamp(since, UTC)), _floor(datetime.now(UTC)) + _HOUR
        while first < end:
            until = min(end, first + _MAX_WINDOW)
            for event in await asyncio.to_thread(self._events, first, until):
                if event.get("project_id") in project_ids:
                    tokens = (event.get("event_info") or {}).get("token_count") or 0
                    found[event["project_id"]] += Usage(float(event.get("gpu_seconds") or 0.0), float(tokens))
            first = until
        return found

    def _events(self, first: datetime, until: datetime) -> list[dict[str, Any]]:
        window = urlencode({"starting_on": first.isoformat(), "ending_before": until.isoformat()})
        request = Request(f"{self._url}?{window}", headers=self._headers)  # noqa: S310  # the user's own server
        try:
            with urlopen(request, timeout=_TIMEOUT_S) as reply:  # noqa: S310
                return json.load(reply)["data"]
        except (URLError, TimeoutError) as error:
            raise Unavailable(f"usage of the study cannot be read: {error}") from error


def _floor(time: datetime) -> datetime:
    return time.replace(minute=0, second=0, microsecond=0)
