"""Users of the caller's tenant, for its admins."""

from starlette.responses import Response

from openrl.gateway.body import read_json
from openrl.gateway.context import Call, Route
from openrl.gateway.identity import actor_of
from openrl.gateway.replies import json_reply, show_time
from openrl.protocol.tenants import CreateUserRequest, UpdateUserRequest
from openrl.store.base import Json
from openrl.store.identities import UserRow


async def create_user(call: Call) -> Response:
    """A user of the tenant, who signs in with the address or the subject, or is given keys."""
    request = await read_json(call, CreateUserRequest)
    gateway = call.gateway
    user = UserRow(
        user_id=gateway.new_id(),
        tenant_id=call.tenant_id,
        role=request.role,
        created_at=gateway.clock(),
        email=request.email.lower(),
        subject=request.subject,
        display_name=request.display_name,
    )
    return json_reply(_show(await gateway.store.identities.add_user(user, actor_of(call.identity))))


async def list_users(call: Call) -> Response:
    """All users of the tenant, oldest first."""
    users = await call.gateway.store.identities.list_users(call.tenant_id)
    return json_reply({"users": [_show(user) for user in users]})


async def update_user(call: Call) -> Response:
    """Change a user's role, lock it out, or let it in again; its keys follow."""
    request = await read_json(call, UpdateUserRequest)
    gateway = call.gateway
    user = await gateway.store.identities.update_user(
        call.tenant_id,
        call.path["user_id"],
        gateway.clock(),
        actor_of(call.identity),
        role=request.role,
        is_disabled=request.is_disabled,
    )
    return json_reply(_show(user))


def _show(user: UserRow) -> Json:
    return {
        "user_id": user.user_id,
        "email": user.email,
        "subject": user.subject,
        "display_name": user.display_name,
        "role": user.role,
        "created_at": show_time(user.created_at),
        "disabled_at": None if user.disabled_at is None else show_time(user.disabled_at),
    }


ROUTES = (
    Route("POST", "/admin/users", create_user, "admin", body=CreateUserRequest),
    Route("GET", "/admin/users", list_users, "admin"),
    Route("PATCH", "/admin/users/{user_id}", update_user, "admin", body=UpdateUserRequest),
)
