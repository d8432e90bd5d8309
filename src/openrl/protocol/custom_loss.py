"""Traced losses that clients upload (tinker-api §4.6): the wire form, and the checked graph as typed data. No torch.

Nothing of a graph is executable: it names functions, and an interpreter of ours looks them up in its own table.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Annotated, Any, Literal, cast

from pydantic import Field, StringConstraints, ValidationError

from openrl.errors import BadValue, InvalidRequest, NotFound
from openrl.protocol.custom_loss_ops import DTYPES, KEYWORDS, NAMES, WORDS, Namespace, resolve_function
from openrl.protocol.losses import CUSTOM, LossInputSpec, LossSpec
from openrl.protocol.validation import NO_NUL
from openrl.protocol.wire import Counter, Id, WireModel

MAX_GRAPH_BYTES = 2**20
MAX_NODES = 1000
MAX_INPUTS = 16
MAX_METRICS = 32
MAX_ITEMS = 1024
"""Entries of one list or tuple."""
MAX_DEPTH = 4
"""Lists within lists."""
MAX_NAME_CHARACTERS = 128
MAX_INTEGER = 2**63 - 1
CUSTOM_LOSSES = "custom_losses/"
"""What the keys of all definitions start with."""
LOSS_FILE = "loss.json"
"""The file of a stored loss."""
_LOSS_ID = re.compile(r"loss-[0-9a-f]{40}")
_METRIC = re.compile(r"custom/[a-z0-9_./-]{1,64}:(sum|mean)")
_INPUT_NAME = re.compile(r"[a-z_][a-z0-9_]{0,63}")
_CALLS = "a call of one of the tensor functions and methods of docs/losses.md"
_ARGUMENTS = (
    "a number, a known word, a list of those, or one of the objects ref, tuple, slice, ellipsis, float, dtype, device"
)
_NON_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}

Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME_CHARACTERS, pattern=NO_NUL)]


class LossNodeWire(WireModel):
    """One node as torch.fx records it."""

    op: Literal["placeholder", "get_attr", "call_function", "call_method", "call_module", "output"]
    name: Name
    target: Name
    args: Annotated[tuple[Any, ...], Field(max_length=MAX_ITEMS)] = ()
    kwargs: dict[str, Any] = Field(default_factory=dict[str, Any], max_length=MAX_ITEMS)


class LossGraphWire(WireModel):
    """The nodes in the order they run."""

    format: Literal[1] = 1
    nodes: Annotated[tuple[LossNodeWire, ...], Field(min_length=1, max_length=MAX_NODES, fail_fast=True)]


class LossInputWire(WireModel):
    """One parameter of a loss."""

    name: Name
    rank: Literal[0, 1, 2]


class LossDefinition(WireModel):
    """What makes a loss: two that are equal here are the same loss."""

    name: Name
    inputs: Annotated[tuple[LossInputWire, ...], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    graph: LossGraphWire


class CreateCustomLossRequest(LossDefinition):
    """Body of `create_custom_loss`."""

    session_id: Id
    custom_loss_seq_id: Counter


# -- the checked graph


@dataclass(frozen=True, slots=True)
class Reference:
    """The value of an input or an earlier call: inputs are counted first, then calls."""

    value: int


@dataclass(frozen=True, slots=True)
class Items:
    """A tuple or a list."""

    items: tuple["Argument", ...]
    is_list: bool


@dataclass(frozen=True, slots=True)
class SliceBounds:
    """A slice."""

    start: "Argument"
    stop: "Argument"
    step: "Argument"


@dataclass(frozen=True, slots=True)
class DType:
    """An element type by its name in torch."""

    name: str


@dataclass(frozen=True, slots=True)
class HostDevice:
    """The one device that losses run on."""


Argument = None | bool | int | float | str | EllipsisType | Reference | Items | SliceBounds | DType | HostDevice


@dataclass(frozen=True, slots=True)
class LossCall:
    """One call of the graph; `node` is its name there, for messages."""

    node: str
    namespace: Namespace
    op: str
    args: tuple[Argument, ...]
    kwargs: tuple[tuple[str, Argument], ...]


@dataclass(frozen=True, slots=True)
class CustomLoss:
    """A loss that this server can run: `logprobs` is its first input, ranks are per input."""

    name: str
    inputs: tuple[tuple[str, int], ...]
    calls: tuple[LossCall, ...]
    loss: int  # see Reference
    metrics: tuple[tuple[str, int], ...]


def custom_loss_spec(loss: CustomLoss) -> LossSpec:
    """What datums must have; inputs that the loss does not name are nobody's business."""
    (_, logprobs_rank), *others = loss.inputs
    targets = LossInputSpec("int64", allows_matrix=True, minimum=-1, rank=logprobs_rank)
    inputs = {name: LossInputSpec("any", rank=rank, is_per_token=False) for name, rank in others}
    return LossSpec(CUSTOM, {**inputs, "target_tokens": targets}, ignores_others=True)


def read_loss_id(config: Mapping[str, float | str]) -> str:
    """The id in a `loss_fn_config`; raises InvalidRequest for anything else there."""
    loss_id = config.get("loss_id")
    if not isinstance(loss_id, str) or len(config) != 1:
        given = ", ".join(config) or "none"
        raise BadValue("loss_fn 'custom': settings", given, "loss_id, a text, and no other", "missing")
    return loss_id


def custom_loss_id(definition: bytes) -> str:
    """The id of a definition as it is stored: equal losses of a tenant are one."""
    return f"loss-{hashlib.sha256(definition).hexdigest()[:40]}"


def custom_loss_key(tenant_id: str, loss_id: str) -> str:
    """The object key of a tenant's loss; raises NotFound for what cannot be an id."""
    if not _LOSS_ID.fullmatch(loss_id):
        raise NotFound.of("custom loss", loss_id)
    return f"{CUSTOM_LOSSES}{tenant_id}/{loss_id}"


def parse_custom_loss(stored: bytes) -> CustomLoss:
    """The loss in a stored definition; raises InvalidRequest where it is damaged."""
    try:
        return check_custom_loss(LossDefinition.model_validate_json(stored))
    except ValidationError as error:
        raise InvalidRequest(
            f"the stored custom loss is malformed: {error}", "malformed", bound="a loss as it was checked"
        ) from error


def check_custom_loss(definition: LossDefinition) -> CustomLoss:
    """The loss as typed data; raises InvalidRequest naming the node, and the value and its bound."""
    inputs = _check_inputs(definition.inputs)
    reader = _GraphReader([name for name, _ in inputs])
    *body, last = definition.graph.nodes
    for node in body:
        reader.read(node)
    loss, metrics = reader.read_output(last)
    return CustomLoss(definition.name, inputs, tuple(reader.calls), loss, metrics)


def _check_inputs(inputs: Sequence[LossInputWire]) -> tuple[tuple[str, int], ...]:
    names = [each.name for each in inputs]
    for name in names:
        if not _INPUT_NAME.fullmatch(name):
            bound = "lowercase letters, digits and underscores, at most 64"
            raise InvalidRequest(f"input {name!r} must be {bound}", "malformed", value=name, bound=bound)
    if names[0] != "logprobs" or len(set(names)) != len(names):
        shown, bound = ", ".join(names)[:300], "logprobs comes first and each name once"
        raise InvalidRequest(f"inputs are {shown}; {bound}", "wrong_shape", value=shown, bound=bound)
    if inputs[0].rank == 0:
        raise InvalidRequest("logprobs has rank 0; it must be 1 or 2", "wrong_shape", value=0, bound="1 or 2")
    return tuple((each.name, each.rank) for each in inputs)


class _GraphReader:
    """Reads nodes in order; a node can refer to earlier ones only, so graphs have no cycles."""

    def __init__(self, input_names: Sequence[str]) -> None:
        self._input_names = input_names
        self._values: dict[str, int] = {}
        self.calls: list[LossCall] = []

    def read(self, node: LossNodeWire) -> None:
        """Take an input or a call."""
        if node.name in self._values:
            raise InvalidRequest(f"node {node.name!r} is there twice; name each once", "name_taken", value=node.name)
        match node.op:
            case "placeholder":
                self._read_input(node)
            case "call_function" | "call_method":
                self._require_inputs(node)
                self.calls.append(self._read_call(node))
            case "get_attr" | "call_module" | "output":
                message = f"node {node.name!r}: {node.op} {node.target!r} has no place in a custom loss"
                raise InvalidRequest(message, "not_supported", value=node.op, bound=_CALLS)
        self._values[node.name] = len(self._values)

    def read_output(self, node: LossNodeWire) -> tuple[int, tuple[tuple[str, int], ...]]:
        """The value that is the loss, and those of the metrics."""
        self._require_inputs(node)
        output = _pair(node.args[0]) if node.op == "output" and len(node.args) == 1 and not node.kwargs else None
        metrics = _only(output[1], "dict") if output is not None else None
        if output is None or not isinstance(metrics, dict):
            bound = "the output: (loss, metrics)"
            raise InvalidRequest(f"the last node must be {bound}", "malformed", value=node.op, bound=bound)
        entries = cast("dict[str, Any]", metrics)
        if len(entries) > MAX_METRICS:
            message = f"{len(entries)} metrics; there may be {MAX_METRICS}"
            raise InvalidRequest(message, "out_of_range", value=len(entries), bound=f"at most {MAX_METRICS}")
        for key in entries:
            if not _METRIC.fullmatch(key):
                bound = "named custom/<name>:sum or custom/<name>:mean"
                raise InvalidRequest(f"metric {key[:100]!r} must be {bound}", "malformed", value=key, bound=bound)
        named = tuple((key, self._output(value, f"metric {key!r}")) for key, value in entries.items())
        return self._output(output[0], "the loss"), named

    def _read_input(self, node: LossNodeWire) -> None:
        place = len(self._values)
        if place >= len(self._input_names) or node.target != self._input_names[place] or node.args or node.kwargs:
            message = f"placeholder {node.target!r} is not input {place} of the loss"
            bound = f"{', '.join(self._input_names)}, in this order and without arguments"
            raise InvalidRequest(message, "unknown_name", value=node.target, bound=bound)

    def _require_inputs(self, node: LossNodeWire) -> None:
        if len(self._values) < len(self._input_names):
            missing = self._input_names[len(self._values)]
            message = f"node {node.name!r} stands before the placeholder of input {missing!r}"
            raise InvalidRequest(message, "malformed", value=node.name, bound="after all placeholders")

    def _read_call(self, node: LossNodeWire) -> LossCall:
        where = f"node {node.name!r}"
        if node.op == "call_method":
            namespace, op = "method", node.target
            is_known = op in NAMES["method"]
        elif node.target in ("getattr", "builtins.getattr"):
            return self._read_attribute(node)
        else:
            namespace, op = resolve_function(node.target) or ("torch", "")
            is_known = bool(op)
        if not is_known:
            kind = "tensor method" if node.op == "call_method" else "function"
            message = f"{where}: {kind} {node.target!r} is not one that a custom loss may call here"
            raise InvalidRequest(message, "not_supported", value=node.target, bound=_CALLS)
        unknown = sorted(node.kwargs.keys() - KEYWORDS)
        if unknown:
            message = f"{where}: {node.target} may not have the argument {unknown[0][:100]!r}"
            raise InvalidRequest(
                message, "not_supported", value=unknown[0], bound=f"one of {', '.join(sorted(KEYWORDS))}"
            )
        args = tuple(self._argument(each, where) for each in node.args)
        kwargs = tuple((key, self._argument(each, where)) for key, each in node.kwargs.items())
        if dict(kwargs).get("inplace") not in (None, False):
            message = f"{where}: {node.target} in place; a custom loss may not change its tensors"
            raise InvalidRequest(message, "not_supported", value=node.target, bound="without inplace")
        return LossCall(node.name, namespace, op, args, kwargs)

    def _read_attribute(self, node: LossNodeWire) -> LossCall:
        where = f"node {node.name!r}"
        name: Any = node.args[1] if len(node.args) == 2 and not node.kwargs else None
        if not isinstance(name, str) or name not in NAMES["getattr"]:
            known = ", ".join(sorted(NAMES["getattr"]))
            message = f"{where}: attribute {str(name)[:100]!r} is not one of {known}"
            raise InvalidRequest(message, "not_supported", value=str(name), bound=f"one of {known}")
        return LossCall(node.name, "getattr", name, (self._argument(node.args[0], where),), ())

    def _argument(self, value: Any, where: str, depth: int = 0) -> Argument:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            if abs(value) > MAX_INTEGER:
                raise BadValue(f"{where}: an integer", value, "within 2**63 - 1")
            return value
        if isinstance(value, float):
            if not math.isfinite(value):
                bound = f"{{'float': '{value}'}}"
                message = f"{where}: {value} is sent as an object, {bound}"
                raise InvalidRequest(message, "malformed", value=value, bound=bound)
            return value
        if isinstance(value, str):
            if value not in WORDS:
                bound = f"one of {', '.join(sorted(WORDS))}"
                message = f"{where}: the text {value[:100]!r} is not {bound}"
                raise InvalidRequest(message, "unknown_name", value=value, bound=bound)
            return value
        if depth >= MAX_DEPTH:
            message = f"{where}: arguments are nested deeper than {MAX_DEPTH}"
            raise InvalidRequest(message, "out_of_range", value=depth + 1, bound=f"at most {MAX_DEPTH} deep")
        if isinstance(value, list):
            return self._items(cast("list[Any]", value), where, depth, is_list=True)
        return self._tagged(value, where, depth)

    def _tagged(self, value: Any, where: str, depth: int) -> Argument:
        """What one-key objects stand for."""
        tag, content = _tag_of(value)
        if tag == "ref" and isinstance(content, str):
            return self._reference(content, where)
        if tag == "tuple" and isinstance(content, list):
            return self._items(cast("list[Any]", content), where, depth, is_list=False)
        if tag == "slice" and isinstance(content, list) and len(cast("list[Any]", content)) == 3:
            bounds = [self._argument(each, where, depth + 1) for each in cast("list[Any]", content)]
            return SliceBounds(bounds[0], bounds[1], bounds[2])
        if tag == "ellipsis" and content is True:
            return ...
        if tag == "float" and isinstance(content, str) and content in _NON_FINITE:
            return _NON_FINITE[content]
        if tag == "dtype" and isinstance(content, str) and content in DTYPES:
            return DType(content)
        if tag == "device" and content == "cpu":
            return HostDevice()
        message = f"{where}: {str(value)[:100]} is not an argument that a custom loss may have here"
        raise InvalidRequest(message, "not_supported", value=str(value), bound=_ARGUMENTS)

    def _items(self, values: list[Any], where: str, depth: int, *, is_list: bool) -> Items:
        if len(values) > MAX_ITEMS:
            message = f"{where}: a list of {len(values)} entries; it may have {MAX_ITEMS}"
            raise InvalidRequest(message, "out_of_range", value=len(values), bound=f"at most {MAX_ITEMS}")
        return Items(tuple(self._argument(each, where, depth + 1) for each in values), is_list)

    def _reference(self, name: str, where: str) -> Reference:
        if name not in self._values:
            message = f"{where} refers to {name[:MAX_NAME_CHARACTERS]!r}, which is no earlier node"
            raise InvalidRequest(message, "unknown_name", value=name, bound="the name of an earlier node")
        return Reference(self._values[name])

    def _output(self, value: Any, what: str) -> int:
        tag, content = _tag_of(value)
        if tag != "ref" or not isinstance(content, str):
            message, bound = f"{what} must be the value of a node, not {str(value)[:100]}", "{'ref': <name of a node>}"
            raise InvalidRequest(message, "malformed", value=str(value), bound=bound)
        return self._reference(content, what).value


def _tag_of(value: Any) -> tuple[str, Any]:
    """Key and content of a one-key object."""
    if not isinstance(value, dict) or len(cast("dict[str, Any]", value)) != 1:
        return "", None
    return next(iter(cast("dict[str, Any]", value).items()))


def _only(value: Any, tag: str) -> Any:
    found, content = _tag_of(value)
    return content if found == tag else None


def _pair(value: Any) -> tuple[Any, Any] | None:
    """The two entries of a tuple or list."""
    items = value if isinstance(value, list) else _only(value, "tuple")
    if not isinstance(items, list) or len(cast("list[Any]", items)) != 2:
        return None
    return items[0], items[1]
