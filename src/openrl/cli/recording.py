"""The load of an installation as lines of JSON that name nobody: `bench.autoscale` plays them."""

import hashlib
import hmac
import json
import re
from collections.abc import Iterable

from openrl.errors import InvalidRequest
from openrl.store.ledger import RequestLoad, SessionLoad

_UNITS = {"m": 60.0, "h": 3600.0, "d": 86400.0}
_HEX_DIGITS = 12


def read_span(given: str) -> float:
    """Seconds of "90m", "24h" or "7d"."""
    if not re.fullmatch(r"[1-9]\d{0,4}[mhd]", given):
        raise InvalidRequest(f"a stretch of time is a number of 1 to 99999 with m, h or d, such as 24h; not {given!r}")
    return int(given[:-1]) * _UNITS[given[-1]]


def recorded(loads: Iterable[SessionLoad], since: float, until: float, salt: bytes) -> Iterable[str]:
    """A line for each session. Times are seconds after `since`; whoever has not the salt cannot tell the tenants."""
    for load in loads:
        runs = {run_id: number for number, run_id in enumerate(dict.fromkeys(each.run_id for each in load.requests))}
        row = {
            "tenant": hmac.new(salt, load.tenant_id.encode(), hashlib.sha256).hexdigest()[:_HEX_DIGITS],
            "start_s": round(max(load.created_at - since, 0.0), 3),
            "end_s": round((until if load.ended_at is None else load.ended_at) - since, 3),
            "requests": [_request(each, runs[each.run_id], since) for each in load.requests],
        }
        yield json.dumps(row, separators=(",", ":"))


def _request(load: RequestLoad, run: int, since: float) -> dict[str, str | int | float | None]:
    return {
        "at_s": round(load.created_at - since, 3),
        "took_s": None if load.finished_at is None else round(load.finished_at - load.created_at, 3),
        "kind": load.kind,
        "model": load.base_model,
        "run": run if load.run_id else None,
        "tokens": load.num_tokens,
        "used_tokens": load.used_tokens,
        "busy_s": round(load.busy_s, 6),
    }
