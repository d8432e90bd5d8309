"""Sessions: one client process each, kept alive by heartbeats."""

import asyncio

from starlette.responses import Response

from openrl.gateway.body import read_json
from openrl.gateway.context import Call, Route
from openrl.gateway.idempotency import idempotency_key
from openrl.gateway.metadata import check_metadata
from openrl.gateway.query import check_access_scope, read_page
from openrl.gateway.replies import json_reply, no_content, show_metadata
from openrl.protocol.wire import CreateSessionRequest, FinishSessionRequest, SessionHeartbeatRequest
from openrl.store.base import SessionRow
from openrl.store.cluster import Signal
from openrl.store.ledger import DEFAULT_PROJECT


async def create_session(call: Call) -> Response:
    """A new session; a repeated idempotency key gives the first one again."""
    request = await read_json(call, CreateSessionRequest)
    now = call.gateway.clock()
    session = SessionRow(
        session_id=call.gateway.new_id(),
        tenant_id=call.tenant_id,
        created_at=now,
        last_heartbeat_at=now,
        sdk_version=request.sdk_version,
        tags=request.tags,
        user_metadata=check_metadata(request.user_metadata),
        display_name=request.display_name,
        project_id=request.project_id or call.identity.project_id or DEFAULT_PROJECT,
        idempotency_key=idempotency_key(call),
        user_id=call.identity.user_id,
    )
    stored = await call.gateway.store.create_session(session)
    return json_reply({"type": "create_session", "session_id": stored.session_id})


async def session_heartbeat(call: Call) -> Response:
    """The client lives; 410 tells it that its session is over."""
    request = await read_json(call, SessionHeartbeatRequest)
    await call.gateway.store.heartbeat(call.tenant_id, request.session_id, call.gateway.clock())
    return json_reply({"type": "session_heartbeat"})


async def finish_session(call: Call) -> Response:
    """The client says goodbye."""
    request = await read_json(call, FinishSessionRequest)
    session_id = call.path["session_id"]
    session = await call.gateway.store.get_session(call.tenant_id, session_id)
    if session.state == "active":
        reason = request.reason.type if request.detail is None else f"{request.reason.type}: {request.detail}"
        await call.gateway.store.end_session(call.tenant_id, session_id, "finished", reason)
        await call.gateway.tell(Signal("session_ended", session_id))
    return no_content()


async def list_sessions(call: Call) -> Response:
    """Ids of the tenant's sessions, newest first."""
    limit, offset = read_page(call.request, default_limit=20)
    check_access_scope(call.request)
    page = await call.gateway.store.list_sessions(call.tenant_id, limit, offset)
    return json_reply({"sessions": [session.session_id for session in page.items]})


async def get_session(call: Call) -> Response:
    """What a session has created."""
    check_access_scope(call.request)
    store, session_id = call.gateway.store, call.path["session_id"]
    session = await store.get_session(call.tenant_id, session_id)
    runs, samplers = await asyncio.gather(
        store.runs_of_session(call.tenant_id, session_id), store.samplers_of_session(call.tenant_id, session_id)
    )
    return json_reply(
        {
            "training_run_ids": [run.spec.run_id for run in runs],
            "sampler_ids": [sampler.sampler_id for sampler in samplers],
            "user_metadata": show_metadata(session.user_metadata),
            "display_name": session.display_name,
        }
    )


ROUTES = (
    Route("POST", "/session_heartbeat", session_heartbeat, body=SessionHeartbeatRequest),
    Route("POST", "/create_session", create_session, body=CreateSessionRequest),
    Route("POST", "/sessions/{session_id}/finish", finish_session, body=FinishSessionRequest),
    Route("GET", "/sessions", list_sessions, "read", query=("limit", "offset", "access_scope")),
    Route("GET", "/sessions/{session_id}", get_session, "read"),
)
