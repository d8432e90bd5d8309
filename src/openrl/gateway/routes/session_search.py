"""Sessions found by what is known of them, and the projects they are sorted into."""

from starlette.responses import Response

from openrl.gateway.body import read_json
from openrl.gateway.context import Call, Route
from openrl.gateway.identity import user_urn
from openrl.gateway.replies import json_reply, no_content, show_metadata, show_time
from openrl.protocol.admin import (
    AssignProjectRequest,
    FinishedStatus,
    PlainStatus,
    SearchCursor,
    SessionSearchRequest,
    SessionsOfUsers,
)
from openrl.store.base import Json
from openrl.store.ledger import SessionQuery, SessionSummary, StatusQuery


async def search_sessions(call: Call) -> Response:
    """One page of matching sessions, newest first."""
    request = await read_json(call, SessionSearchRequest)
    query = _query(call.tenant_id, request)
    is_empty = isinstance(request.owner, SessionsOfUsers) and user_urn(call.tenant_id) not in request.owner.owner_urns
    found = [] if is_empty else list(await call.gateway.store.ledger.search_sessions(query))
    page = found[: request.limit]
    content: Json = {"sessions": [_show(call.tenant_id, session) for session in page]}
    if len(found) > len(page):
        last = page[-1]
        content["next_cursor"] = {
            "last_created_at": show_time(last.created_at),
            "last_session_id": last.session_id,
        }
    return json_reply(content)


async def assign_project(call: Call) -> Response:
    """Move a session into a project, which comes into being when it is first named."""
    request = await read_json(call, AssignProjectRequest)
    gateway = call.gateway
    await gateway.store.ledger.assign_project(
        call.tenant_id, call.path["session_id"], request.project_id, gateway.clock()
    )
    return no_content()


def _query(tenant_id: str, request: SessionSearchRequest) -> SessionQuery:
    """One more than asked for: it tells whether there is another page."""
    return SessionQuery(
        tenant_id=tenant_id,
        limit=request.limit + 1,
        session_id=request.session_id,
        project_ids=request.project_ids,
        user_metadata=tuple(request.user_metadata.items()),
        display_words=tuple((request.display_name or "").split()),
        statuses=None if request.statuses is None else tuple(map(_status_query, request.statuses)),
        after=None if request.cursor is None else _position(request.cursor),
    )


def _position(cursor: SearchCursor) -> tuple[float, str]:
    return cursor.last_created_at.timestamp(), cursor.last_session_id


def _status_query(status: PlainStatus | FinishedStatus) -> StatusQuery:
    if isinstance(status, FinishedStatus):
        return StatusQuery("finished", status.reasons)
    return StatusQuery(status.type)


def _show(tenant_id: str, session: SessionSummary) -> Json:
    """A SessionSummary."""
    content: Json = {
        "session_id": session.session_id,
        "created_at": show_time(session.created_at),
        "owner": user_urn(tenant_id),
        "project_id": session.project_id,
        "status": _show_status(session.state, session.end_reason or ""),
        "checkpoints_count": session.num_checkpoints,
        "checkpoint_storage_bytes": session.checkpoint_bytes,
        "display_name": session.display_name,
        "user_metadata": show_metadata(session.user_metadata),
    }
    return content


def _show_status(state: str, end_reason: str) -> Json | None:
    """None for a session that went silent: it neither finished nor is known to be running."""
    match state:
        case "active":
            return {"type": "active"}
        case "finished":
            reason, separator, detail = end_reason.partition(": ")
            return {"type": "client_finished", "reason": {"type": reason}, "detail": detail if separator else None}
        case _:
            return None


ROUTES = (
    Route("POST", "/sessions/search", search_sessions, "read", body=SessionSearchRequest),
    Route("PUT", "/sessions/{session_id}/project", assign_project, body=AssignProjectRequest),
)
