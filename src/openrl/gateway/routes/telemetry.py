"""Takes the events that clients report about themselves."""

from starlette.responses import Response

from openrl.gateway.body import read_body
from openrl.gateway.context import Call, Route
from openrl.gateway.replies import json_reply


async def telemetry(call: Call) -> Response:
    """Accepted and dropped, whatever it says: anything but a quick answer delays the client (tinker-api P14)."""
    await read_body(call, is_json=False)
    return json_reply({"status": "accepted"})


ROUTES = (Route("POST", "/telemetry", telemetry, "read"),)
