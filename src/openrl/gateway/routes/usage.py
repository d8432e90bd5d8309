"""What a tenant used: tokens and storage by hour, and what it stores at the moment (tinker-api §4.9)."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime

from pydantic import AwareDatetime, TypeAdapter, ValidationError
from starlette.responses import Response

from openrl.config import RatesConfig
from openrl.errors import BadValue, InvalidRequest
from openrl.gateway.context import Call, Route
from openrl.gateway.identity import user_urn
from openrl.gateway.query import read_project
from openrl.gateway.replies import json_reply, show_metadata, show_time
from openrl.store.base import Json
from openrl.store.costs import cost_of
from openrl.store.ledger import HOUR_S, ProjectSummary, StorageSpan, UsageRow

MAX_HOURS = 14 * 24
GIGABYTE = 1e9
MONTH_HOURS = 720
_TIME: TypeAdapter[datetime] = TypeAdapter(AwareDatetime)


async def usage_events(call: Call) -> Response:
    """Usage by hour, session, model and kind, with estimates of its cost where rates are configured."""
    first_hour, end_hour = _window(call)
    gateway = call.gateway
    report = await gateway.store.ledger.usage(call.tenant_id, first_hour, end_hour)
    spans = await gateway.store.ledger.storage(call.tenant_id, first_hour * HOUR_S, end_hour * HOUR_S)
    rates, owner = gateway.config.rates, await _owner(call)
    events = [(row.hour, -row.amount, _show_usage(row, rates, owner)) for row in report.rows]
    held = storage_by_hour(spans, first_hour, end_hour, gateway.clock())
    events += [
        (hour, 0, _show_storage(_bucket(hour, base_model, project_id, owner), amount, rates.storage))
        for (hour, project_id, base_model), amount in held.items()
    ]
    events.sort(key=lambda event: event[:2])
    sessions = {name: {"user_metadata": show_metadata(metadata)} for name, metadata in report.sessions.items()}
    return json_reply({"data": [event for _, _, event in events], "sessions": sessions, "cost_data_through": None})


async def current_storage(call: Call) -> Response:
    """Checkpoints that are kept at the moment, by project."""
    wanted = read_project(call.request)
    rate = call.gateway.config.rates.storage
    owner = await _owner(call)
    projects = await call.gateway.store.ledger.list_projects(call.tenant_id)
    kept = [each for each in projects if each.num_checkpoints and wanted in (None, each.project_id)]
    return json_reply(
        {
            "effective_rate_usd_per_gigabyte_month": rate,
            "data": [_show_project(project, rate, owner) for project in kept],
        }
    )


def storage_by_hour(
    spans: Iterable[StorageSpan], first_hour: int, end_hour: int, now: float
) -> dict[tuple[int, str, str], float]:
    """Gigabyte-hours by hour, project and base model, up to now."""
    held: defaultdict[tuple[int, str, str], float] = defaultdict(float)
    for span in spans:
        until = min(now if span.until is None else span.until, end_hour * HOUR_S)
        for hour in range(max(first_hour, int(span.since // HOUR_S)), end_hour):
            seconds = min(until, (hour + 1) * HOUR_S) - max(span.since, hour * HOUR_S)
            if seconds <= 0:
                break
            held[hour, span.project_id, span.base_model] += seconds / HOUR_S * span.size_bytes / GIGABYTE
    return held


def _window(call: Call) -> tuple[int, int]:
    """First hour and the one after the last; raises InvalidRequest for a window that is not served."""
    first, end = (_hour(call, name) for name in ("starting_on", "ending_before"))
    if not 0 < end - first <= MAX_HOURS:
        raise BadValue("hours from starting_on to ending_before", end - first, f"between 1 and {MAX_HOURS}")
    if first * HOUR_S > call.gateway.clock():
        starting_on = call.request.query_params["starting_on"]
        raise BadValue("starting_on", starting_on, f"in the past; it is {show_time(call.gateway.clock())} here")
    return first, end


def _hour(call: Call, name: str) -> int:
    text = call.request.query_params.get(name)
    if text is None:
        raise InvalidRequest(
            f"{name} is missing: the first hour, or the one after the last, as an RFC 3339 time", "missing"
        )
    try:
        seconds = _TIME.validate_python(text).timestamp()
    except (ValidationError, OverflowError):
        raise BadValue(name, text, "an RFC 3339 time with its offset", "malformed") from None
    if seconds % HOUR_S:
        raise BadValue(name, text, "on a full hour of UTC")
    return int(seconds // HOUR_S)


async def _owner(call: Call) -> tuple[str, str]:
    """URN and name of the tenant."""
    tenant = await call.gateway.store.identities.get_tenant(call.tenant_id)
    return user_urn(call.tenant_id), tenant.name


def _bucket(hour: int, base_model: str, project_id: str, owner: tuple[str, str]) -> Json:
    urn, name = owner
    return {
        "bucket_start": show_time(hour * HOUR_S),
        "bucket_end": show_time((hour + 1) * HOUR_S),
        "base_model": base_model or None,
        "user_id": urn,
        "user_name": name,
        "project_id": project_id,
    }


def _show_usage(row: UsageRow, rates: RatesConfig, owner: tuple[str, str]) -> Json:
    event = _bucket(row.hour, row.base_model, row.project_id, owner) | {"session_id": row.session_id}
    event["gpu_seconds"] = row.busy_us / 1e6
    cost = cost_of(rates, row.kind, row.amount, row.busy_us)
    if cost is not None:
        event["estimated_cost_usd"] = cost
    match row.kind:
        case "checkpoint":
            return event | {"event_info": {"type": "checkpoint", "count": row.amount}}
        case "training":
            rate, info = rates.training, {"type": "training"}
        case "prefill":
            rate, info = rates.prefill, {"type": "sampling_prefill", "cached": False}
        case "cached_prefill":
            rate, info = rates.cached_prefill, {"type": "sampling_prefill", "cached": True}
        case "sample":
            rate, info = rates.sample, {"type": "sampling_sample"}
    event["event_info"] = {**info, "token_count": row.amount}
    if rate is not None:
        event["effective_rate_usd_per_million_tokens"] = rate
    return event


def _show_storage(event: Json, gigabyte_hours: float, rate: float | None) -> Json:
    event["event_info"] = {"type": "storage", "free": False, "gigabyte_hours": gigabyte_hours}
    if rate is not None:
        event["effective_rate_usd_per_gigabyte_month"] = rate
        event["estimated_cost_usd"] = rate * gigabyte_hours / MONTH_HOURS
    return event


def _show_project(project: ProjectSummary, rate: float | None, owner: tuple[str, str]) -> Json:
    urn, name = owner
    gigabytes = project.checkpoint_bytes / GIGABYTE
    return {
        "project_id": project.project_id,
        "org_user_urn": urn,
        "user_email": None,
        "user_name": name,
        "checkpoint_count": project.num_checkpoints,
        "size_bytes": project.checkpoint_bytes,
        "size_gigabytes": gigabytes,
        "estimated_monthly_cost_usd": None if rate is None else rate * gigabytes,
    }


ROUTES = (
    Route("GET", "/billing/usage/events", usage_events, "read", query=("starting_on", "ending_before")),
    Route("GET", "/billing/usage/checkpoints/current", current_storage, "read", query=("project_id",)),
)
