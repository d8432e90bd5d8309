"""Finds a session that can take something new."""

from openrl.errors import SessionEnded
from openrl.gateway.context import Call
from openrl.store.base import SessionRow


async def find_active_session(call: Call, session_id: str, use: str) -> SessionRow:
    """The tenant's session; raises NotFound, and SessionEnded that says for what another one is needed."""
    session = await call.gateway.store.get_session(call.tenant_id, session_id)
    if session.state != "active":
        raise SessionEnded.of(session_id, session.state, session.end_reason, use)
    return session
