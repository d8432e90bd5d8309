"""Prints what an SDK asks of a server, a sorted line each; runs in the venv of any version."""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tinker

CLIENTS = ("ServiceClient", "TrainingClient", "SamplingClient", "RestClient", "AdminClient")


def endpoints() -> Iterator[str]:
    for file in Path(tinker.__file__).parent.rglob("*.py"):
        for path in re.findall(r'"/api/v1/([^"?]*)"', file.read_text()):
            yield f"endpoint {re.sub('{[^}]*}', '{}', path)}"


def methods() -> Iterator[str]:
    for name in CLIENTS:
        client = getattr(tinker, name, None)
        if client is None:
            continue
        for method, function in inspect.getmembers(client, inspect.isfunction):
            if not method.startswith("_") and not method.endswith("_async"):
                yield f"method {name}.{method}({', '.join(inspect.signature(function).parameters)})"


def config_flags() -> Iterator[str]:
    module = importlib.import_module("tinker.types.client_config_response")
    for name, field in module.ClientConfigResponse.model_fields.items():
        yield f"client/config {name} = {field.default}"


def wire_types() -> Iterator[str]:
    for name, kind in inspect.getmembers(tinker.types, inspect.isclass):
        fields: dict[str, Any] = getattr(kind, "model_fields", None) or getattr(kind, "__dataclass_fields__", {})
        yield from (f"type {name}.{field}" for field in fields)


def messages() -> Iterator[str]:
    try:
        pb: Any = importlib.import_module("tinker.proto.tinker_public_pb2")
    except ImportError:
        return
    for message in pb.DESCRIPTOR.message_types_by_name.values():
        for field in message.fields:
            yield f"protobuf {message.name}.{field.name} = {field.number}"


if __name__ == "__main__":
    print("\n".join(sorted({*endpoints(), *methods(), *config_flags(), *wire_types(), *messages()})))
