"""What clients ask before they start: settings, capabilities, health."""

from starlette.responses import Response

from openrl.errors import Unavailable
from openrl.gateway.body import read_json
from openrl.gateway.client_flags import dynamic_flags, is_remote, static_flags
from openrl.gateway.context import Call, Route
from openrl.gateway.errors import error_response
from openrl.gateway.replies import json_reply
from openrl.protocol.wire import ClientConfigRequest


async def client_config(call: Call) -> Response:
    """Settings of the client; what is absent has its default there (tinker-api §2.1)."""
    await read_json(call, ClientConfigRequest)
    return json_reply(static_flags(call.gateway.client, call.gateway.config, is_remote(call.request)))


async def client_dynamic_config(call: Call) -> Response:
    """Settings that clients fetch again while they run."""
    await read_json(call, ClientConfigRequest)
    return json_reply(dynamic_flags(call.gateway.client, is_remote(call.request)))


async def get_server_capabilities(call: Call) -> Response:
    """The base models served here."""
    models = [
        {
            "model_name": model.name,
            "max_context_length": model.context_length,
            "trainable": True,
            "sampleable": True,
        }
        for model in call.gateway.catalog.all()
    ]
    return json_reply({"supported_models": models})


async def get_load(call: Call) -> Response:
    """How full the server is, all tenants together; for clients that choose how much to ask of it at once."""
    load = (await call.gateway.pauses.status()).load
    return json_reply({"device_duty": load.device_duty, "queue_wait_s": load.queue_wait_s})


async def healthz(_: Call) -> Response:
    """The process answers, and so does its loop."""
    return json_reply({"status": "ok"})


async def readyz(call: Call) -> Response:
    """Whether work can be done: 503 until it can."""
    if call.gateway.is_ready():
        return json_reply({"status": "ready"})
    starting = Unavailable("the server is starting or stopping: no worker takes requests yet; ask again soon")
    return error_response(call.request, starting, {"status": "starting"})


ROUTES = (
    Route("POST", "/client/config", client_config, "read", body=ClientConfigRequest),
    Route("POST", "/client/dynamic_config", client_dynamic_config, "read", body=ClientConfigRequest),
    Route("GET", "/get_server_capabilities", get_server_capabilities, "read"),
    Route("GET", "/load", get_load, "read"),
    Route("GET", "/healthz", healthz, "read", is_public=True),
    Route("GET", "/startupz", healthz, "read", is_public=True),
    Route("GET", "/livez", healthz, "read", is_public=True),
    Route("GET", "/readyz", readyz, "read", is_public=True),
)
