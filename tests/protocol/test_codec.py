"""Our codec against itself and against the SDK's."""

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tinker import types
from tinker.proto import tinker_public_pb2 as sdk_pb
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.proto.response_conv import deserialize_forward_backward_output, deserialize_sample_response

from openrl.errors import InvalidRequest
from openrl.protocol import tinker_pb2 as pb
from openrl.protocol.codec import (
    decode_forward_backward,
    decode_run_and_seq_id,
    encode_forward_backward,
    encode_forward_backward_output,
    encode_sample_response,
)
from openrl.protocol.datum import Datum, DenseArray, ForwardBackwardInput, ProvenanceSpan, SparseCsr
from openrl.protocol.oversized import read_address, read_json_address
from openrl.protocol.results import ForwardBackwardResult, SampledSequence, SampleResult, TopkLogprobs

FLOATS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=5))
INTS = hnp.arrays(np.int64, hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=5))
TOKENS = hnp.arrays(np.int32, st.integers(0, 20))
NAMES = st.text(max_size=8)


@st.composite
def sparse_tensors(draw: st.DrawFn) -> SparseCsr:
    mask = draw(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=5)))
    crow = np.concatenate([[0], np.cumsum(mask.sum(axis=1))]).astype(np.int64)
    col = np.nonzero(mask)[1].astype(np.int64)
    values = draw(hnp.arrays(np.float32, len(col)) | hnp.arrays(np.int64, len(col)))
    return SparseCsr(values, crow, col, mask.shape)


SPANS = st.builds(ProvenanceSpan, NAMES, st.integers(0, 2**40), st.integers(0, 2**40), st.booleans())
DATUMS = st.builds(
    Datum,
    TOKENS,
    st.dictionaries(NAMES, FLOATS | INTS | sparse_tensors(), max_size=3),
    st.lists(SPANS, max_size=2).map(tuple),
    st.lists(SPANS, max_size=2).map(tuple),
)
REQUESTS = st.builds(
    ForwardBackwardInput,
    run_id=NAMES,
    seq_id=st.integers(0, 2**31 - 1),
    data=st.lists(DATUMS, max_size=3).map(tuple),
    loss_fn=NAMES,
    loss_fn_config=st.dictionaries(NAMES, st.floats(allow_nan=False) | NAMES, max_size=3),
    is_forward_only=st.booleans(),
)


def plain(value: Any) -> Any:
    """Comparable by `==`: arrays as dtype, shape and bytes."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, SparseCsr):
        return plain(value.values), plain(value.crow_indices), plain(value.col_indices), value.shape
    if isinstance(value, Datum):
        inputs = {name: plain(tensor) for name, tensor in value.loss_inputs.items()}
        return plain(value.tokens), inputs, value.model_input_spans, value.loss_input_spans
    return value


@given(REQUESTS)
def test_a_request_survives_encoding_and_decoding(request: ForwardBackwardInput):
    decoded = decode_forward_backward(encode_forward_backward(request))
    assert [plain(datum) for datum in decoded.data] == [plain(datum) for datum in request.data]
    assert (decoded.run_id, decoded.seq_id, decoded.loss_fn) == (request.run_id, request.seq_id, request.loss_fn)
    assert (decoded.loss_fn_config, decoded.is_forward_only) == (request.loss_fn_config, request.is_forward_only)


def test_decoded_arrays_are_writable():
    body = encode_forward_backward(
        ForwardBackwardInput("r", 1, (Datum(np.ones(2, np.int32), {"w": np.ones(2, np.float32)}),), "x")
    )
    datum = decode_forward_backward(body).data[0]
    weights = datum.loss_inputs["w"]
    assert isinstance(weights, np.ndarray)
    assert datum.tokens.flags.writeable
    assert weights.flags.writeable


def test_what_the_sdk_sends_is_read_as_it_was_meant():
    spans: Any = [types.SampledProvenanceSpan(sequence_id="s", offset=1, length=3)]
    datum = types.Datum(
        model_input=types.ModelInput(
            chunks=[types.EncodedTextChunk(tokens=[1, 2]), types.EncodedTextChunk(tokens=[3])]
        ),
        loss_fn_inputs={
            "target_tokens": types.TensorData(
                data=[7, 9], dtype="int64", shape=[3, 2], sparse_crow_indices=[0, 1, 1, 2], sparse_col_indices=[1, 0]
            ),
            "weights": types.TensorData(data=[0.5] * 6, dtype="float32", shape=[3, 2]),
            "plain": types.TensorData(data=[1.0, 2.0, 3.0], dtype="float32"),
        },
        model_input_spans=spans,
        loss_fn_input_spans=spans,
    )
    config: Any = {"beta": 0.5, "loss_id": "abc"}
    inner = types.ForwardBackwardInput(data=[datum], loss_fn="dro", loss_fn_config=config)
    request = types.ForwardBackwardRequest(forward_backward_input=inner, model_id="a:train:0", seq_id=3)
    body = forward_backward_request_to_proto(request).SerializeToString()
    decoded = decode_forward_backward(body)
    assert (decoded.run_id, decoded.seq_id, decoded.loss_fn) == ("a:train:0", 3, "dro")
    assert decoded.loss_fn_config == {"beta": 0.5, "loss_id": "abc"}
    assert decoded.data[0].tokens.tolist() == [1, 2, 3]
    targets = decoded.data[0].loss_inputs["target_tokens"]
    assert isinstance(targets, SparseCsr)
    assert (targets.values.tolist(), targets.col_indices.tolist(), targets.shape) == ([7, 9], [1, 0], (3, 2))
    assert decoded.data[0].loss_inputs["weights"].shape == (3, 2)
    assert decoded.data[0].loss_inputs["plain"].shape == (3,)
    assert decoded.data[0].model_input_spans == (ProvenanceSpan("s", 1, 3, True),)
    assert decode_run_and_seq_id(body) == ("a:train:0", 3)
    assert read_address(body[:40]) == ("a:train:0", 3)


def test_our_messages_have_the_sdks_field_numbers():
    def fields(message: Any) -> dict[str, Any]:
        own = {(f.name, f.number, f.type, f.is_repeated) for f in message.fields}
        return {message.name: own, **{k: v for nested in message.nested_types for k, v in fields(nested).items()}}

    ours, theirs = pb.DESCRIPTOR.message_types_by_name, sdk_pb.DESCRIPTOR.message_types_by_name
    unused = {"SamplingParams", "StopStrings", "StopTokens"}
    assert set(theirs) - unused == set(ours)
    for name, message in ours.items():
        assert fields(message) == fields(theirs[name])


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.booleans()), max_size=6))
def test_outputs_of_any_shapes_reach_the_sdk_in_order(shapes: list[tuple[int, int, bool]]):
    outputs: list[dict[str, DenseArray]] = []
    for i, (rows, columns, is_float) in enumerate(shapes):
        shape = (rows, columns) if columns else (rows,)
        logprobs = np.full(shape, i, np.float32) if is_float else np.full(shape, i, np.int64)
        outputs.append({"logprobs": logprobs, "n": np.array([i])})
    body = encode_forward_backward_output(ForwardBackwardResult(tuple(outputs), {"loss:sum": 1.25}))
    read = deserialize_forward_backward_output(body)
    assert read.metrics == {"loss:sum": 1.25}
    assert [each["logprobs"].shape for each in read.loss_fn_outputs] == [[*o["logprobs"].shape] for o in outputs]
    for output, expected in zip(read.loss_fn_outputs, outputs, strict=True):
        assert output["logprobs"].tolist() == expected["logprobs"].tolist()
        assert output["logprobs"].dtype == expected["logprobs"].dtype.name
        assert output["n"].tolist() == expected["n"].tolist()


def test_records_are_shared_by_datums_of_one_layout():
    outputs: tuple[dict[str, DenseArray], ...] = tuple({"logprobs": np.ones(i, np.float32)} for i in range(1, 100))
    message = pb.ForwardBackwardOutput.FromString(encode_forward_backward_output(ForwardBackwardResult(outputs, {})))
    assert len(message.loss_fn_outputs) == 1
    assert message.loss_fn_outputs[0].num_datums == 99


def test_a_full_sample_reaches_the_sdk():
    topk = TopkLogprobs(np.array([[1, 2]], np.int32), np.array([[-0.5, -99999.0]], np.float32))
    sequence = SampledSequence("stop", np.array([5], np.int32), np.array([-1.0], np.float32), topk)
    plain_sequence = SampledSequence("length", np.array([6, 7], np.int32), np.array([-1.0, -2.0], np.float32))
    result = SampleResult(
        sequences=(sequence, plain_sequence),
        prompt_logprobs=np.array([np.nan, -1.5], np.float32),
        topk_prompt_logprobs=topk,
        prompt_cache_hit_tokens=16,
        target_prompt_logprobs=np.array([[-3.0]], np.float32),
        prompt_alt_tokens=topk,
    )
    read = deserialize_sample_response(encode_sample_response(result))
    assert [(s.stop_reason, s.tokens, s.logprobs) for s in read.sequences] == [
        ("stop", [5], [-1.0]),
        ("length", [6, 7], [-1.0, -2.0]),
    ]
    assert read.prompt_logprobs == [None, -1.5]
    assert read.prompt_cache_hit_tokens == 16
    assert read.topk_prompt_logprobs is not None
    assert read.target_prompt_logprobs is not None
    assert read.target_prompt_logprobs.tolist() == [[-3.0]]
    assert read.prompt_alt_tokens is not None
    assert read.prompt_alt_tokens.tokens.tolist() == [[1, 2]]


def test_sparse_target_logprobs_keep_their_layout():
    csr = SparseCsr(np.array([-1.0], np.float32), np.array([0, 0, 1]), np.array([3]), (2, 4))
    read = deserialize_sample_response(encode_sample_response(SampleResult((), target_prompt_logprobs=csr)))
    assert read.target_prompt_logprobs is not None
    assert read.target_prompt_logprobs.sparse_crow_indices == [0, 0, 1]
    assert read.target_prompt_logprobs.shape == [2, 4]


def tensor_body(**fields: Any) -> bytes:
    message = pb.ForwardBackwardRequest(model_id="r", seq_id=1, loss_fn="x")
    message.data.add().loss_fn_inputs["w"].CopyFrom(pb.Tensor(**fields))
    return message.SerializeToString()


def csr_of(crow: list[int], col: list[int], num_values: int) -> pb.SparseCsr:
    return pb.SparseCsr(
        values=bytes(4 * num_values),
        crow_indices=np.array(crow, np.int64).tobytes(),
        col_indices=np.array(col, np.int64).tobytes(),
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"dense": b"abc", "dtype": 1},
            "datum 0 'w': number of bytes is 3; it must be a multiple of 4, of whole float32 values",
        ),
        ({"dense": bytes(8), "dtype": 1, "shape": [3]}, "number of values is 2; it must be 3, to fill shape [3]"),
        ({"dense": bytes(8), "dtype": 1, "shape": [2**62, 4]}, "to fill shape [4611686018427387904, 4]"),
        ({"dense": bytes(8), "dtype": 1, "shape": [-1, -2]}, "shape is [-1, -2]; it must be of sizes of at least 0"),
        ({"dense": bytes(4), "dtype": 1, "shape": [1] * 65}, "must be one that an array can have (maximum"),
        ({"dense": b"", "dtype": 1, "shape": [0, 2**62, 2**62]}, "must be one that an array can have"),
        ({"dense": bytes(8), "dtype": 0}, "dtype is 0; it must be"),
        ({"dense": bytes(8), "dtype": 77}, "dtype is 77; it must be"),
        ({"sparse_csr": csr_of([0, 1], [0], 1), "dtype": 1, "shape": [1]}, "shape is [1]; it must be of 2 dimensions"),
        (
            {"sparse_csr": csr_of([0, 1], [0], 1), "dtype": 1, "shape": [2, 2]},
            "number of crow_indices is 2; it must be rows + 1, 3",
        ),
        (
            {"sparse_csr": csr_of([0, 1], [0, 1], 1), "dtype": 1, "shape": [1, 2]},
            "number of col_indices is 2; it must be that of values, 1",
        ),
        (
            {"sparse_csr": csr_of([0, 2, 1], [0], 1), "dtype": 1, "shape": [2, 2]},
            "crow_indices is [0, 2, 1]; it must be numbers that rise from 0 to",
        ),
        (
            {"sparse_csr": csr_of([0, 1], [5], 1), "dtype": 1, "shape": [1, 2]},
            "largest of col_indices is [5, 5]; it must be 0 to 1",
        ),
        ({"sparse_csr": csr_of([0, 2], [1, 1], 2), "dtype": 1, "shape": [1, 2]}, "rise within each row"),
        (
            {"sparse_csr": csr_of([], [], 0), "dtype": 1, "shape": [2**62, 2]},
            "number of crow_indices is 0; it must be rows + 1",
        ),
    ],
)
def test_malformed_tensors_are_refused_with_value_and_bound(fields: dict[str, Any], message: str):
    with pytest.raises(InvalidRequest) as caught:
        decode_forward_backward(tensor_body(**fields))
    assert message in str(caught.value)


@settings(max_examples=300)
@given(st.binary(max_size=200), REQUESTS, st.data())
def test_damaged_bodies_raise_nothing_but_invalid_request(
    junk: bytes, request: ForwardBackwardInput, data: st.DataObject
):
    body = encode_forward_backward(request)
    cut = data.draw(st.integers(0, len(body)))
    for damaged in (junk, body[:cut] + junk, body[:cut] + junk + body[cut:]):
        read_address(damaged)
        with contextlib.suppress(InvalidRequest):
            decode_forward_backward(damaged)


@pytest.mark.parametrize(
    ("end", "address"),
    [
        (b'... "model_id": "a:train:0", "seq_id": 3}', ("a:train:0", 3)),
        (b'"model_id":"\xc3\xa9","seq_id":2147} \n', ("é", 2147)),
        (b'{"x": "\\"model_id\\": \\"b\\"", "model_id": "a", "seq_id": 3}', ("a", 3)),
        (b'"model_id": "a", "seq_id": 0}', None),
        (b'"model_id": "a", "seq_id": 3', None),
        (b'"model_id": "a", "seq_id": 3}}', None),
        (b'"model_id": "\xff", "seq_id": 3}', None),
        (b'"model_id": "", "seq_id": 3}', None),
        (b'"seq_id": 3}', None),
        (b"", None),
    ],
)
def test_a_json_body_ends_with_its_address(end: bytes, address: tuple[str, int] | None):
    assert read_json_address(end) == address
