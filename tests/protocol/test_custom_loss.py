"""The door of traced losses: what is refused, and that the message says why."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from openrl.errors import InvalidRequest, NotFound
from openrl.protocol.custom_loss import (
    MAX_ITEMS,
    MAX_METRICS,
    MAX_NODES,
    LossDefinition,
    check_custom_loss,
    custom_loss_id,
    custom_loss_key,
    read_loss_id,
)
from openrl.protocol.custom_loss_ops import NAMES, resolve_function
from tests.training.traced_losses import REF, TOTAL, call, graph_of, method, node, read

REFUSED: list[tuple[str, list[dict[str, Any]]]] = [
    (r"os\.system", [call("z", "os.system", 1), TOTAL]),
    (r"torch\.load", [call("z", "torch.load", 1), TOTAL]),
    (r"torch\.rand_like", [call("z", "torch.rand_like", REF), TOTAL]),
    (r"torch\.empty", [call("z", "torch.empty", 8), TOTAL]),
    (r"torch\.ops\.aten\.add", [call("z", "torch.ops.aten.add", REF, REF), TOTAL]),
    (r"torch\.functional\.norm", [call("z", "torch.functional.norm", REF), TOTAL]),
    ("eval", [call("z", "builtins.eval", 1), TOTAL]),
    ("tensor method 'item'", [method("z", "item", REF), TOTAL]),
    ("tensor method '__class__'", [method("z", "__class__", REF), TOTAL]),
    ("tensor method 'add_'", [method("z", "add_", REF, 1), TOTAL]),
    ("tensor method 'backward'", [method("z", "backward", REF), TOTAL]),
    ("attribute 'grad_fn'", [call("z", "getattr", REF, "grad_fn"), TOTAL]),
    ("attribute '__class__'", [call("z", "getattr", REF, "__class__"), TOTAL]),
    ("attribute 'None'", [call("z", "getattr", REF), TOTAL]),
    ("argument 'out'", [call("z", "torch.exp", REF, out=REF), TOTAL]),
    ("in place", [call("z", "torch.nn.functional.relu", REF, inplace=True), TOTAL]),
    ("call_module 'Linear'", [node("call_module", "z", "Linear", REF), TOTAL]),
    ("get_attr 'weights'", [node("get_attr", "z", "weights"), TOTAL]),
    ("there twice", [call("z", "torch.exp", REF), call("z", "torch.exp", REF), TOTAL]),
    ("no earlier node", [call("z", "torch.exp", {"ref": "later"}), TOTAL]),
    ("no earlier node", [call("z", "torch.exp", {"ref": "z"}), TOTAL]),
    ("2\\*\\*63", [call("z", "torch.zeros", 2**63), TOTAL]),
    ("the text 'cuda'", [method("z", "to", REF, "cuda"), TOTAL]),
    ("cuda", [method("z", "to", REF, {"device": "cuda"}), TOTAL]),
    ("complex64", [method("z", "to", REF, {"dtype": "complex64"}), TOTAL]),
    ("strided", [call("z", "torch.zeros", 3, size={"layout": "strided"}), TOTAL]),
    (f"may have {MAX_ITEMS}", [call("z", "torch.zeros", [1] * (MAX_ITEMS + 1)), TOTAL]),
    ("deeper", [call("z", "torch.zeros", [[[[[1]]]]]), TOTAL]),
    ("not an argument", [call("z", "torch.zeros", {"ref": "logprobs", "tuple": []}), TOTAL]),
    ("not an argument", [call("z", "torch.zeros", {"slice": [1, 2]}), TOTAL]),
    ("not input 1", [node("placeholder", "other", "other"), TOTAL]),
]


TOO_MANY = [f"custom/{i}:sum" for i in range(MAX_METRICS + 1)]


@pytest.mark.parametrize(("message", "calls"), REFUSED)
def test_what_a_loss_may_not_do_is_refused_by_name(message: str, calls: list[dict[str, Any]]):
    with pytest.raises(InvalidRequest, match=message):
        read(graph_of(*calls))


@pytest.mark.parametrize(
    ("message", "output"),
    [
        ("the last node", [REF]),
        ("the last node", [{"tuple": [REF]}]),
        ("the last node", [{"tuple": [REF, REF]}]),
        ("the loss must be the value of a node", [{"tuple": [1.0, {"dict": {}}]}]),
        ("metric 'loss:sum'", [{"tuple": [REF, {"dict": {"loss:sum": REF}}]}]),
        ("metric 'custom/X:sum'", [{"tuple": [REF, {"dict": {"custom/X:sum": REF}}]}]),
        ("metric 'custom/x:max'", [{"tuple": [REF, {"dict": {"custom/x:max": REF}}]}]),
        ("must be the value of a node", [{"tuple": [REF, {"dict": {"custom/x:sum": 1.0}}]}]),
        (f"may be {MAX_METRICS}", [{"tuple": [REF, {"dict": dict.fromkeys(TOO_MANY, REF)}]}]),
    ],
)
def test_an_output_that_is_no_loss_with_metrics_is_refused(message: str, output: list[Any]):
    definition = graph_of(TOTAL)
    definition["graph"]["nodes"][-1]["args"] = output
    with pytest.raises(InvalidRequest, match=message):
        read(definition)


@pytest.mark.parametrize(
    ("message", "inputs"),
    [
        ("logprobs comes first", [{"name": "x", "rank": 1}]),
        ("each name once", [{"name": "logprobs", "rank": 1}, {"name": "logprobs", "rank": 1}]),
        ("rank 0", [{"name": "logprobs", "rank": 0}]),
        ("input 'Bad'", [{"name": "logprobs", "rank": 1}, {"name": "Bad", "rank": 1}]),
        ("before the placeholder of input 'x'", [{"name": "logprobs", "rank": 1}, {"name": "x", "rank": 1}]),
    ],
)
def test_inputs_that_the_graph_does_not_take_are_refused(message: str, inputs: list[dict[str, Any]]):
    with pytest.raises(InvalidRequest, match=message):
        read({**graph_of(TOTAL), "inputs": inputs})


@pytest.mark.parametrize(
    "change",
    [
        {"name": "x" * 200},
        {"inputs": [{"name": f"x{i}", "rank": 1} for i in range(17)]},
        {"inputs": [{"name": "logprobs", "rank": 3}]},
        {"graph": {"format": 2, "nodes": []}},
        {"graph": {"nodes": [call(f"n{i}", "torch.exp", REF) for i in range(MAX_NODES + 1)]}},
        {"graph": {"nodes": [call("x" * 200, "torch.exp", REF)]}},
    ],
)
def test_sizes_are_bounded_before_anything_is_read(change: dict[str, Any]):
    with pytest.raises(ValidationError):
        LossDefinition.model_validate_json(json.dumps({**graph_of(TOTAL), **change}))


def test_deep_json_is_refused_and_not_recursed_into():
    deep = "[" * 100_000 + "]" * 100_000
    body = json.dumps(graph_of(call("z", "torch.zeros", "DEEP"), TOTAL)).replace('"DEEP"', deep)
    with pytest.raises(ValidationError, match="recursion"):
        LossDefinition.model_validate_json(body)


TAGS = ["ref", "tuple", "dict", "slice", "ellipsis", "float", "dtype", "device", "x"]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.just(REF)


def larger(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(TAGS), inner, min_size=1, max_size=2)


JSON_VALUES = st.recursive(LEAVES, larger, max_leaves=6)


@given(
    st.sampled_from(["call_function", "call_method", "placeholder", "output"]),
    st.sampled_from(["torch.exp", "operator.getitem", "getattr", "sum", "math.sqrt", "x", "operator.pow"]),
    st.lists(JSON_VALUES, max_size=3),
)
def test_any_node_is_read_or_refused(op: str, target: str, args: list[Any]):
    definition = graph_of(node(op, "z", target, *args), TOTAL)
    with suppress(InvalidRequest, ValidationError):
        check_custom_loss(LossDefinition.model_validate_json(json.dumps(definition)))


def test_names_of_torch_fx_are_found_under_their_public_names():
    assert resolve_function("torch._C._nn.softplus") == ("functional", "softplus")
    assert resolve_function("torch._C._nn.log_sigmoid") == ("functional", "logsigmoid")
    assert resolve_function("torch._C._special.special_expit") == ("special", "expit")
    assert resolve_function("torch.functional.split") == ("torch", "split")
    assert resolve_function("_operator.mul") == resolve_function("operator.mul") == ("operator", "mul")
    assert resolve_function("torch._C._nn.load") is None


def test_nothing_that_changes_a_tensor_or_leaves_torch_is_on_the_list():
    for names in NAMES.values():
        assert not [name for name in names if name.endswith("_") and name not in ("and_", "or_")]
        assert not names & {"item", "tolist", "numpy", "backward", "data", "apply_", "map_", "set_", "empty", "rand"}


def test_ids_come_from_the_content_and_lead_to_the_tenants_own():
    first, other = custom_loss_id(b"one"), custom_loss_id(b"two")
    assert first != other
    assert custom_loss_key("a", first) != custom_loss_key("b", first)
    for bad in ("", "loss-1", "../" + first, first + "/x", "loss-" + "g" * 40):
        with pytest.raises(NotFound, match="does not exist"):
            custom_loss_key("a", bad)


def test_a_request_names_its_loss_and_nothing_else():
    assert read_loss_id({"loss_id": "x"}) == "x"
    for config in ({}, {"loss_id": 1.0}, {"loss_id": "x", "beta": 0.1}):
        with pytest.raises(InvalidRequest, match="loss_id"):
            read_loss_id(config)
