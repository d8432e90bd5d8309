"""Losses traced by the SDK itself, as the server reads them."""

import json
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from tinker.lib.public_interfaces.custom_loss import LossHandle, encode_graph, trace_loss
from tinker.types.custom_loss_input import CustomLossInputRank

from openrl.protocol.custom_loss import CustomLoss, LossDefinition, check_custom_loss

Returned = tuple[torch.Tensor, dict[str, torch.Tensor]]


def trace(fn: Callable[..., Returned], **ranks: int) -> LossHandle:
    """The SDK's handle of a loss; logprobs has rank 1 unless told otherwise."""
    given = {"logprobs": 1, **ranks}
    return trace_loss(fn, cast("Mapping[str, CustomLossInputRank]", given), "session")


def definition_of(handle: LossHandle) -> dict[str, Any]:
    """The part of the SDK's upload that defines the loss, as plain JSON."""
    inputs = [each.model_dump() for each in handle.inputs]
    graph = encode_graph(handle).model_dump(mode="json")
    return json.loads(json.dumps({"name": handle.name, "inputs": inputs, "graph": graph}))


def read(definition: Mapping[str, Any]) -> CustomLoss:
    """What the server makes of a definition."""
    return check_custom_loss(LossDefinition.model_validate_json(json.dumps(definition)))


def traced(fn: Callable[..., Returned], **ranks: int) -> CustomLoss:
    """The server's reading of a traced loss."""
    return read(definition_of(trace(fn, **ranks)))


def node(op: str, name: str, target: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """One node of a hand-written graph."""
    return {"op": op, "name": name, "target": target, "args": list(args), "kwargs": kwargs}


def graph_of(*calls: dict[str, Any], loss: str = "out") -> dict[str, Any]:
    """A definition over `logprobs` with the given calls; the value named `loss` is its loss."""
    output = node("output", "output", "output", {"tuple": [{"ref": loss}, {"dict": {}}]})
    nodes = [node("placeholder", "logprobs", "logprobs"), *calls, output]
    return {"name": "hand", "inputs": [{"name": "logprobs", "rank": 1}], "graph": {"format": 1, "nodes": nodes}}


def call(name: str, target: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """A function call of a hand-written graph."""
    return node("call_function", name, target, *args, **kwargs)


def method(name: str, target: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """A method call of a hand-written graph."""
    return node("call_method", name, target, *args, **kwargs)


REF = {"ref": "logprobs"}
TOTAL = method("out", "sum", REF)
