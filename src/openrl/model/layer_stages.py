"""Cuts a traced decoder layer into stages of elementwise work with opaque calls between them.

The trace of a layer holds what transformers computes there; products with weights and attention stand in it as one
opaque node each. Everything else is elementwise or by rows. A stage holds all such nodes that can run after the same
opaque calls, so that the two inputs of a SwiGLU, or rotated queries and keys, are in one stage whatever the order in
which the module's code asks for them. Each stage is compiled by itself; opaque nodes run eagerly, as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, detect_fake_mode, tracing
from torch.fx import Graph, GraphModule, Node

Backend = Callable[[GraphModule, list[Any]], Callable[..., Any]]

VIEWS = {"view", "reshape", "transpose", "contiguous", "unsqueeze", "squeeze", "flatten", "unflatten"}


@dataclass(slots=True)
class _Level:
    """What runs after the same opaque calls."""

    eager: list[Node] = field(default_factory=list[Node])  # views of opaque results, and sizes
    stage: list[Node] = field(default_factory=list[Node])
    opaque: list[Node] = field(default_factory=list[Node])


def compile_stages(
    traced: GraphModule, opaque_calls: Mapping[Any, Callable[..., Tensor]], backend: Backend
) -> GraphModule:
    """The trace with its stages compiled, and opaque nodes replaced by the functions given for their targets."""
    top = Graph()
    stages: dict[str, Any] = {}
    copies: dict[Node, Node] = {}
    nodes = list(traced.graph.nodes)
    for node in nodes:
        if node.op in ("placeholder", "get_attr"):
            copies[node] = top.node_copy(node)
    with_grad = _nodes_with_grad(nodes, opaque_calls)
    for number, level in enumerate(_levels(nodes, opaque_calls)):
        for node in level.eager:
            copies[node] = top.node_copy(node, copies.__getitem__)
        if level.stage:
            name = f"stage{number}"
            stages[name] = _add_stage(top, traced, level.stage, copies, name, with_grad, backend)
        for node in level.opaque:
            arguments = torch.fx.map_arg(node.args, copies.__getitem__)
            copies[node] = top.call_function(opaque_calls[node.target], arguments)
    top.output(torch.fx.map_arg(nodes[-1].args[0], copies.__getitem__))
    return GraphModule({**dict(traced.named_children()), **stages}, top)


def _levels(nodes: Sequence[Node], opaque_calls: Mapping[Any, Any]) -> list[_Level]:
    """Nodes by how many opaque calls stand before them, one after the other."""
    depths: dict[Node, int] = {}
    levels: list[_Level] = []
    eager = _eager_nodes(nodes, opaque_calls)
    for node in nodes:
        if node.op == "output":
            continue
        before = [depths[each] + (each.target in opaque_calls) for each in node.all_input_nodes]
        depths[node] = max(before, default=0)
        while len(levels) <= depths[node]:
            levels.append(_Level())
        level = levels[depths[node]]
        if node.op in ("placeholder", "get_attr"):
            continue
        if node.target in opaque_calls:
            level.opaque.append(node)
        elif node in eager:
            level.eager.append(node)
        else:
            level.stage.append(node)
    return levels


def _eager_nodes(nodes: Sequence[Node], opaque_calls: Mapping[Any, Any]) -> set[Node]:
    """Sizes, and views of opaque results that only opaque calls read: no stage need see them."""
    sizes = {node for node in nodes if not _is_tensor(node) and node.op != "output"}
    behind: set[Node] = set()
    for node in nodes:
        tensors = [each for each in node.all_input_nodes if _is_tensor(each)]
        if _is_view(node) and all(each.target in opaque_calls or each in behind for each in tensors):
            behind.add(node)
    for node in reversed(nodes):
        if node in behind and not all(user.target in opaque_calls or user in behind for user in node.users):
            behind.discard(node)
    return sizes | behind


def _is_view(node: Node) -> bool:
    return node.op == "call_method" and node.target in VIEWS


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("example_value"), Tensor)


def _nodes_with_grad(nodes: Sequence[Node], opaque_calls: Mapping[Any, Any]) -> set[Node]:
    """Nodes whose values carry gradients: opaque results do where autograd is on."""
    found: set[Node] = set()
    if torch.is_grad_enabled():
        for node in nodes:
            is_source = node.op == "placeholder" and _is_tensor(node) and node.meta["example_value"].requires_grad
            if is_source or node.target in opaque_calls or any(each in found for each in node.all_input_nodes):
                found.add(node)
    return found


def _add_stage(
    top: Graph,
    traced: GraphModule,
    stage: Sequence[Node],
    copies: dict[Node, Node],
    name: str,
    with_grad: set[Node],
    backend: Backend,
) -> "_Stage":
    """Compile the nodes and call them in the top graph; what others need of them goes into `copies`."""
    graph, inside = Graph(), set(stage)
    inputs = list(dict.fromkeys(each for node in stage for each in node.all_input_nodes if each not in inside))
    own = {node: graph.placeholder(node.name) for node in inputs}
    for node in stage:
        own[node] = graph.node_copy(node, own.__getitem__)
    outputs = [node for node in stage if any(user not in inside for user in node.users)]
    graph.output(tuple(own[node] for node in outputs))
    examples = [_example(node, node in with_grad) for node in inputs]
    fake_mode = detect_fake_mode(examples)
    with tracing(TracingContext(fake_mode)):
        compiled = backend(GraphModule(traced, graph), examples)
    call = top.call_module(name, tuple(copies[node] for node in inputs))
    for index, node in enumerate(outputs):
        copies[node] = top.call_function(_item, (call, index))
    return _Stage(compiled)


def _item(values: Sequence[Tensor], index: int) -> Tensor:
    return values[index]


def _example(node: Node, has_grad: bool) -> Any:
    """A value like those that the node will have."""
    value = node.meta["example_value"]
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().requires_grad_(has_grad)
    return value


class _Stage(torch.nn.Module):
    """A compiled function as a module, so that a graph can call it."""

    def __init__(self, compiled: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = compiled
