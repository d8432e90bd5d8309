"""Training data in JSON against the same data in protobuf."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from openrl.errors import InvalidRequest
from openrl.protocol.codec import decode_forward_backward, encode_forward_backward
from openrl.protocol.datum import Datum, ForwardBackwardInput, LossInput, SparseCsr
from openrl.protocol.json_datums import JsonForwardBackwardRequest, JsonForwardRequest, to_forward_backward

SHAPES = hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=5)
FLOATS = hnp.arrays(np.float32, SHAPES, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
INTS = hnp.arrays(np.int64, SHAPES)
SPARSE = SparseCsr(
    np.array([0.25, -1e-38], np.float32), np.array([0, 1, 2], np.int64), np.array([2, 0], np.int64), (2, 3)
)
DATUMS = st.builds(
    Datum,
    hnp.arrays(np.int32, st.integers(0, 20)),
    st.dictionaries(st.text(max_size=8), FLOATS | INTS | st.just(SPARSE), max_size=3),
)
REQUESTS = st.builds(
    ForwardBackwardInput,
    run_id=st.just("run"),
    seq_id=st.integers(1, 2**31 - 1),
    data=st.lists(DATUMS, max_size=3).map(tuple),
    loss_fn=st.text(max_size=8),
    loss_fn_config=st.dictionaries(st.text(max_size=8), st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    is_forward_only=st.booleans(),
)


def tensor_json(tensor: LossInput) -> dict[str, Any]:
    values = tensor.values if isinstance(tensor, SparseCsr) else tensor.reshape(-1)
    shown: dict[str, Any] = {"data": values.tolist(), "dtype": values.dtype.name, "shape": list(tensor.shape)}
    if isinstance(tensor, SparseCsr):
        shown["sparse_crow_indices"] = tensor.crow_indices.tolist()
        shown["sparse_col_indices"] = tensor.col_indices.tolist()
    return shown


def datum_json(datum: Datum) -> dict[str, Any]:
    return {
        "model_input": {"chunks": [{"type": "encoded_text", "tokens": datum.tokens.tolist()}]},
        "loss_fn_inputs": {name: tensor_json(tensor) for name, tensor in datum.loss_inputs.items()},
    }


def body(request: ForwardBackwardInput) -> str:
    field = "forward_input" if request.is_forward_only else "forward_backward_input"
    given = {"data": [datum_json(datum) for datum in request.data], "loss_fn": request.loss_fn}
    given |= {"loss_fn_config": request.loss_fn_config}
    return json.dumps({field: given, "model_id": request.run_id, "seq_id": request.seq_id})


@settings(max_examples=50)
@given(REQUESTS)
def test_json_gives_the_arrays_that_protobuf_gives(request: ForwardBackwardInput):
    form = JsonForwardRequest if request.is_forward_only else JsonForwardBackwardRequest
    from_json = to_forward_backward(form.model_validate_json(body(request)))
    from_protobuf = decode_forward_backward(encode_forward_backward(request))
    assert describe(from_json) == describe(from_protobuf)


def describe(request: ForwardBackwardInput) -> list[Any]:
    """All of it, arrays as dtype, shape and bytes."""
    config = sorted(request.loss_fn_config.items())
    told: list[Any] = [request.run_id, request.seq_id, request.loss_fn, config, request.is_forward_only]
    for datum in request.data:
        told.append(array(datum.tokens))
        told.extend((name, loss_input(datum.loss_inputs[name])) for name in sorted(datum.loss_inputs))
    return told


def loss_input(tensor: LossInput) -> list[Any]:
    if isinstance(tensor, SparseCsr):
        return [tensor.shape, *map(array, (tensor.values, tensor.crow_indices, tensor.col_indices))]
    return [array(tensor)]


def array(values: Any) -> tuple[str, tuple[int, ...], bytes]:
    return values.dtype.name, values.shape, values.tobytes()


def test_a_tensor_without_shape_is_a_row():
    assert decode({"data": [1, 2], "dtype": "int64"}).shape == (2,)


@pytest.mark.parametrize(
    ("tensor", "part"),
    [
        ({"data": [1], "dtype": "int64", "shape": [2]}, "number of values is 1; it must be 2, to fill shape [2]"),
        ({"data": [1], "dtype": "int64", "shape": [-1]}, "shape is [-1]; it must be of sizes of at least 0"),
        ({"data": [], "dtype": "int64", "shape": [0, 2**70]}, "must be one that an array can have"),
        ({"data": [1], "dtype": "int64", "shape": [1] * 65}, "must be one that an array can have (maximum"),
        ({"data": [1e39], "dtype": "float32"}, "entry is 1e+39; it must be between -3.4"),
        ({"data": [10**400], "dtype": "float32"}, "entry is 1000000000"),
        ({"data": [1], "dtype": "int64", "shape": [2**62, 4]}, "to fill shape [4611686018427387904, 4]"),
        ({"data": [1.5], "dtype": "int64"}, "entry is 1.5; it must be a whole number, as dtype is int64"),
        ({"data": [2**63], "dtype": "int64"}, "entry is 9223372036854775808; it must be between"),
        ({"data": [1], "dtype": "int64", "sparse_crow_indices": [0]}, "of 2 dimensions, as the tensor is sparse"),
        ({"data": [1], "dtype": "int64", "shape": [1, 1], "sparse_crow_indices": [0, 1]}, "come together"),
        (
            {"data": [], "dtype": "int64", "shape": [-1, 1], "sparse_crow_indices": [], "sparse_col_indices": []},
            "shape is [-1, 1]; it must be of sizes of at least 0",
        ),
        (
            {"data": [1], "dtype": "int64", "shape": [1, 1], "sparse_crow_indices": [0, 1], "sparse_col_indices": [1]},
            "it must be 0 to 0",
        ),
    ],
)
def test_a_malformed_tensor_is_refused_with_its_place(tensor: dict[str, Any], part: str):
    with pytest.raises(InvalidRequest, match="datum 0 'x'") as caught:
        decode(tensor)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("chunk", "part"),
    [
        ({"type": "image", "data": "", "format": "png"}, "type is 'image'; it must be encoded_text"),
        ({"type": "encoded_text", "tokens": [2**31]}, "datum 0 tokens: entry is 2147483648; it must be between"),
    ],
)
def test_a_chunk_that_is_no_text_is_refused(chunk: dict[str, Any], part: str):
    with pytest.raises(InvalidRequest) as caught:
        to_forward_backward(parse({"model_input": {"chunks": [chunk]}, "loss_fn_inputs": {}}))
    assert part in str(caught.value)


def decode(tensor: dict[str, Any]) -> LossInput:
    datum = {"model_input": {"chunks": []}, "loss_fn_inputs": {"x": tensor}}
    return to_forward_backward(parse(datum)).data[0].loss_inputs["x"]


def parse(datum: dict[str, Any]) -> JsonForwardRequest:
    given = {"model_id": "run", "seq_id": 1, "forward_input": {"data": [datum], "loss_fn": "cross_entropy"}}
    return JsonForwardRequest.model_validate_json(json.dumps(given))
