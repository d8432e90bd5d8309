"""The audit log: what was done to a tenant's things on one day."""

from datetime import UTC, date, datetime, timedelta

from starlette.responses import Response

from openrl.errors import BadValue
from openrl.gateway.context import Call, Route
from openrl.gateway.identity import user_urn
from openrl.gateway.replies import json_reply, show_time
from openrl.store.base import Json
from openrl.store.ledger import AuditCategory, AuditEntry

# Teams do not exist here: a tenant is the smallest unit.
_CATEGORIES: dict[str, AuditCategory | None] = {
    "all": None,
    "checkpoints": "checkpoints",
    "projects": "projects",
    "organizations": "organizations",
}


async def audit(call: Call) -> Response:
    """Entries of a day of UTC, today unless it is named, oldest first."""
    kind = call.request.query_params.get("event_type", "all")
    start = datetime.combine(_day(call), datetime.min.time(), UTC)
    if kind == "teams":
        return json_reply({"entries": []})
    if kind not in _CATEGORIES:
        raise BadValue("event_type", kind, f"one of {', '.join((*_CATEGORIES, 'teams'))}", "unknown_name")
    since, until = start.timestamp(), (start + timedelta(days=1)).timestamp()
    entries = await call.gateway.store.ledger.audit_log(call.tenant_id, _CATEGORIES[kind], since, until)
    return json_reply({"entries": [_show(call.tenant_id, entry) for entry in entries]})


def _day(call: Call) -> date:
    text = call.request.query_params.get("day")
    if text is None:
        return datetime.fromtimestamp(call.gateway.clock(), UTC).date()
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise BadValue("day", text, "of the form YYYY-MM-DD", "malformed") from None
    if not 1970 <= day.year <= 9998:
        raise BadValue("day", text, "in the years 1970 to 9998")
    return day


def _show(tenant_id: str, entry: AuditEntry) -> Json:
    """An AuditLogEntry; clients before 0.36 read two of the details from fields of their own."""
    return {
        "timestamp": show_time(entry.created_at),
        "event": entry.event,
        "event_details": {"actor": user_urn(tenant_id), **entry.details},
        "model_id": entry.details.get("training_run_id"),
        "tinker_path": entry.details.get("tinker_path"),
    }


ROUTES = (Route("GET", "/audit", audit, "admin", query=("event_type", "day")),)
