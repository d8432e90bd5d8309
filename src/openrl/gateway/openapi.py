"""Describes the API in OpenAPI 3.1, from the routes themselves; served at /openapi.json."""

import inspect
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, get_args

from pydantic.json_schema import models_json_schema

from openrl.gateway.context import Access, Route
from openrl.gateway.error_help import HELP
from openrl.gateway.query import MAX_OFFSET, MAX_PAGE
from openrl.gateway.replies import JSON_TYPE, PROTOBUF_TYPE
from openrl.protocol.paths import CHECKPOINT_NAME
from openrl.protocol.runs import CheckpointKind
from openrl.protocol.validation import PROJECT_ID

_SCHEMAS = "#/components/schemas/{model}"
_ERROR: Mapping[str, Any] = {
    "type": "object",
    "required": ["detail", "code", "docs"],
    "properties": {
        "detail": {"type": "string", "description": "For people; may change."},
        "code": {"type": "string", "enum": list(HELP)},
        "value": {"description": "What was sent, where one value is to blame."},
        "bound": {"type": "string", "description": "What it must be."},
        "docs": {"type": "string", "format": "uri"},
    },
}
_ID = {"type": "string", "minLength": 1, "maxLength": 256}
_TIME = {"type": "string", "format": "date-time"}
_PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "run_id": _ID,
    "session_id": _ID,
    "sampler_id": _ID,
    "project_id": {"type": "string", "maxLength": 128, "pattern": PROJECT_ID},
    "kind": {"type": "string", "enum": list(get_args(CheckpointKind))},
    "name": {"type": "string", "pattern": CHECKPOINT_NAME},
    "token": {"type": "string", "pattern": r"^[A-Za-z0-9_=-]+\.[0-9a-f]{64}$"},
    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE},
    "offset": {"type": "integer", "minimum": 0, "maximum": MAX_OFFSET},
    "access_scope": {"type": "string", "enum": ["owned", "accessible"]},
    "event_type": {"type": "string", "enum": ["all", "checkpoints", "projects", "organizations", "teams"]},
    "day": {"type": "string", "format": "date"},
    "starting_on": _TIME,
    "ending_before": _TIME,
}
"""By name, in paths and queries; others are any text."""
_BINARY: Mapping[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_KEY: Mapping[str, Any] = {"type": "apiKey", "in": "header", "name": "X-API-Key"}
_BEARER: Mapping[str, Any] = {"type": "http", "scheme": "bearer", "description": "The same credential."}
_NEEDED: Mapping[Access, str] = {"read": "Any role may.", "write": "For members and admins.", "admin": "For admins."}


def describe(routes: Sequence[tuple[str, Route]]) -> dict[str, Any]:
    """The whole document; `routes` come with the prefix of their path."""
    bodies = {route.body for _, route in routes if route.body is not None}
    ordered = sorted(bodies, key=lambda body: body.__name__)
    _, definitions = models_json_schema([(body, "validation") for body in ordered], ref_template=_SCHEMAS)
    paths: dict[str, dict[str, Any]] = {}
    for prefix, route in routes:
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", prefix + route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(path, route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "OpenRL",
            "version": version("openrl"),
            "description": "The Tinker API on your own machines. Bodies and results of forward_backward, and results "
            "of asample, are protobuf (package tinker_public); everything else is JSON.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": {**definitions.get("$defs", {}), "Error": _ERROR},
            "securitySchemes": {"key": _KEY, "bearer": _BEARER},
        },
    }


def _operation(path: str, route: Route) -> dict[str, Any]:
    summary, _, rest = (inspect.getdoc(route.handler) or route.handler.__name__).partition("\n\n")
    places = [_parameter(name, "path", is_required=True) for name in re.findall(r"\{(\w+)\}", path)]
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{path}").strip("_"),
        "summary": " ".join(summary.split()).removesuffix("."),
        "tags": [route.handler.__module__.rpartition(".")[2]],
        "parameters": places + [_parameter(name, "query", is_required=False) for name in route.query],
        "responses": {
            "2XX": {"description": "Done; what is queued answers `request_id`, to be polled with retrieve_future."},
            "4XX": {
                "description": "Refused; nothing was changed.",
                "content": {"application/json": {"schema": {"$ref": _SCHEMAS.format(model="Error")}}},
            },
        },
        "security": [] if route.is_public else [{"key": []}, {"bearer": []}],
    }
    role = "" if route.is_public else _NEEDED[route.access]
    operation["description"] = " ".join([*rest.split(), role]).strip()
    content: dict[str, Any] = {PROTOBUF_TYPE: _BINARY} if route.is_protobuf else {}
    if route.body is not None:
        content[JSON_TYPE] = {"schema": {"$ref": _SCHEMAS.format(model=route.body.__name__)}}
    if content:
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameter(name: str, place: str, *, is_required: bool) -> dict[str, Any]:
    return {"name": name, "in": place, "required": is_required, "schema": _PARAMETERS.get(name, {"type": "string"})}
