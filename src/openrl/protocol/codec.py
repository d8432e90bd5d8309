"""Protobuf bodies of the Tinker API to typed arrays, and back (tinker-api §4.1).

Arrays are copied out of the body, so they are writable and do not keep it alive. Every malformed body
raises InvalidRequest that names the datum, the value and the bound.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TypeVar

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from openrl.errors import BadValue, InvalidRequest
from openrl.protocol import tinker_pb2 as pb
from openrl.protocol.body_parts import check_parts
from openrl.protocol.datum import (
    Datum,
    DenseArray,
    ForwardBackwardInput,
    Int32Array,
    LossInput,
    ProvenanceSpan,
    SparseCsr,
)
from openrl.protocol.oversized import MAX_ADDRESS_BYTES, read_address
from openrl.protocol.results import ForwardBackwardResult, SampleResult, TopkLogprobs

Scalar = TypeVar("Scalar", bound=np.generic)

_INT32: np.dtype[np.int32] = np.dtype("<i4")
_INT64: np.dtype[np.int64] = np.dtype("<i8")
_FLOAT32: np.dtype[np.float32] = np.dtype("<f4")
_WIRE_DTYPES: dict[str, pb.DType] = {
    "float32": pb.DTYPE_FLOAT32,
    "int64": pb.DTYPE_INT64,
    "int32": pb.DTYPE_INT32,
}
_STOP_REASONS = {"stop": pb.STOP_REASON_STOP, "length": pb.STOP_REASON_LENGTH}


# -- forward_backward requests


def decode_forward_backward(body: bytes, max_datums: int | None = None) -> ForwardBackwardInput:
    """The input of one forward_backward; raises InvalidRequest for anything that is not one.

    `max_datums`: for bodies that were not admitted yet.
    """
    message = _parse(body)
    if max_datums is not None and len(message.data) > max_datums:
        raise BadValue("number of datums", len(message.data), f"between 1 and {max_datums}")
    return ForwardBackwardInput(
        run_id=message.model_id,
        seq_id=message.seq_id,
        data=tuple(_decode_datum(datum, f"datum {i}") for i, datum in enumerate(message.data)),
        loss_fn=message.loss_fn,
        loss_fn_config=_decode_config(message),
        is_forward_only=message.forward_only,
    )


def decode_run_and_seq_id(body: bytes) -> tuple[str, int] | None:
    """Only the address of a forward_backward, also of one whose tensors are malformed; None where it is not one."""
    try:
        message = _parse(body)
    except InvalidRequest:
        return read_address(body[:MAX_ADDRESS_BYTES])
    return message.model_id, message.seq_id


def _parse(body: bytes) -> pb.ForwardBackwardRequest:
    check_parts(body)
    message = pb.ForwardBackwardRequest()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        message = f"body of {len(body)} bytes is not a ForwardBackwardRequest: {error}"
        raise InvalidRequest(message, "malformed", bound="a ForwardBackwardRequest in protobuf") from None
    return message


def _decode_config(message: pb.ForwardBackwardRequest) -> dict[str, float | str]:
    config: dict[str, float | str] = dict(message.loss_fn_config)
    for key, value in message.loss_fn_config_v2.items():
        which = value.WhichOneof("value")
        if which is None:
            raise InvalidRequest(f"loss_fn_config {key!r} has neither number nor text", "missing")
        config[key] = value.number if which == "number" else value.text
    return config


def _decode_datum(datum: pb.Datum, where: str) -> Datum:
    chunks = [_decode_tokens(chunk, where) for chunk in datum.model_input]
    return Datum(
        tokens=np.concatenate(chunks) if chunks else np.zeros(0, np.int32),
        loss_inputs={name: _decode_tensor(t, f"{where} {name!r}") for name, t in datum.loss_fn_inputs.items()},
        model_input_spans=_decode_spans(datum.model_input_spans, where),
        loss_input_spans=_decode_spans(datum.loss_fn_input_spans, where),
    )


def _decode_tokens(chunk: pb.Chunk, where: str) -> Int32Array:
    kind = chunk.WhichOneof("chunk")
    if kind != "encoded_text":
        raise BadValue(f"{where}: model input chunk: type", kind or "none", "encoded_text", "not_supported")
    return _array(chunk.encoded_text.tokens, _INT32, f"{where} tokens")


def _decode_spans(spans: Iterable[pb.ProvenanceSpan], where: str) -> tuple[ProvenanceSpan, ...]:
    decoded: list[ProvenanceSpan] = []
    for span in spans:
        which = span.WhichOneof("span")
        if which is None:
            raise InvalidRequest(f"{where}: provenance span {len(decoded)} is empty", "missing")
        arm = span.sampled_tokens if which == "sampled_tokens" else span.prompt_tokens
        if arm.offset < 0 or arm.length < 0:
            name = f"{where}: offset and length of provenance span {len(decoded)}"
            raise BadValue(name, [arm.offset, arm.length], "at least 0", "wrong_shape")
        decoded.append(ProvenanceSpan(arm.sequence_id, arm.offset, arm.length, which == "sampled_tokens"))
    return tuple(decoded)


def _decode_tensor(tensor: pb.Tensor, where: str) -> LossInput:
    if tensor.dtype not in (pb.DTYPE_FLOAT32, pb.DTYPE_INT64):
        raise BadValue(f"{where}: dtype", tensor.dtype, "1 (float32) or 2 (int64)", "wrong_dtype")
    is_float = tensor.dtype == pb.DTYPE_FLOAT32
    shape = tuple(tensor.shape)
    check_sizes(shape, where)
    if tensor.WhichOneof("encoding") == "sparse_csr":
        return _decode_sparse(tensor.sparse_csr, is_float, shape, where)
    return shaped(_values(tensor.dense, is_float, where), shape, where)


def check_sizes(shape: tuple[int, ...], where: str) -> None:
    """Raises InvalidRequest for what cannot be the size of anything."""
    if any(size < 0 for size in shape):
        raise BadValue(f"{where}: shape", list(shape)[:8], "of sizes of at least 0", "wrong_shape")


def shaped(values: DenseArray, shape: tuple[int, ...], where: str) -> DenseArray:
    """`values` in `shape`, a row if that is empty; raises InvalidRequest where they disagree."""
    num_expected = _product(shape) if shape else values.size
    if num_expected != values.size:
        bound = f"{num_expected}, to fill shape {list(shape)[:8]}"
        raise BadValue(f"{where}: number of values", values.size, bound, "wrong_shape")
    try:
        return values.reshape(shape or (-1,))
    except (ValueError, OverflowError) as error:  # more dimensions or larger ones than arrays have
        bound = f"one that an array can have ({error})"
        raise BadValue(f"{where}: shape", list(shape)[:8], bound, "wrong_shape") from None


def _decode_sparse(csr: pb.SparseCsr, is_float: bool, shape: tuple[int, ...], where: str) -> SparseCsr:
    if len(shape) != 2:
        raise BadValue(f"{where}: shape", list(shape)[:8], "of 2 dimensions, as the tensor is sparse", "wrong_shape")
    values = _values(csr.values, is_float, where)
    crow = _array(csr.crow_indices, _INT64, f"{where} crow_indices")
    col = _array(csr.col_indices, _INT64, f"{where} col_indices")
    check_csr(crow, col, values.size, shape, where)
    return SparseCsr(values, crow, col, (shape[0], shape[1]))


def check_csr(
    crow: NDArray[np.int64], col: NDArray[np.int64], num_values: int, shape: tuple[int, ...], where: str
) -> None:
    """Raises InvalidRequest unless the index arrays describe `num_values` distinct cells of `shape`."""
    rows, columns = shape
    if crow.size != rows + 1:
        raise BadValue(f"{where}: number of crow_indices", crow.size, f"rows + 1, {rows + 1}", "wrong_shape")
    if col.size != num_values:
        raise BadValue(f"{where}: number of col_indices", col.size, f"that of values, {num_values}", "wrong_shape")
    if crow[0] != 0 or crow[-1] != num_values or bool((np.diff(crow) < 0).any()):
        bound = f"numbers that rise from 0 to the number of values, {num_values}"
        raise BadValue(f"{where}: crow_indices", crow.tolist()[:8], bound, "wrong_shape")
    if col.size and (int(col.min()) < 0 or int(col.max()) >= columns):
        reach = [int(col.min()), int(col.max())]
        raise BadValue(f"{where}: least and largest of col_indices", reach, f"0 to {columns - 1}", "wrong_shape")
    rises = np.diff(col) > 0
    starts = crow[1:-1]  # a fall is fine where the next row starts
    rises[starts[(starts > 0) & (starts < col.size)] - 1] = True
    if not bool(rises.all()):
        raise BadValue(f"{where}: col_indices", col.tolist()[:8], "numbers that rise within each row", "wrong_shape")


def _values(data: bytes, is_float: bool, where: str) -> DenseArray:
    return _array(data, _FLOAT32, where) if is_float else _array(data, _INT64, where)


def _array(data: bytes, dtype: np.dtype[Scalar], where: str) -> NDArray[Scalar]:
    if len(data) % dtype.itemsize:
        bound = f"a multiple of {dtype.itemsize}, of whole {dtype.name} values"
        raise BadValue(f"{where}: number of bytes", len(data), bound, "wrong_shape")
    return np.frombuffer(data, dtype).copy()


def _product(shape: Sequence[int]) -> int:
    """Without numpy's silent overflow: shapes come from outside."""
    product = 1
    for size in shape:
        product *= size
    return product


def encode_forward_backward(request: ForwardBackwardInput) -> bytes:
    """The body that `decode_forward_backward` reads."""
    message = pb.ForwardBackwardRequest(
        model_id=request.run_id, seq_id=request.seq_id, loss_fn=request.loss_fn, forward_only=request.is_forward_only
    )
    for key, value in request.loss_fn_config.items():
        if isinstance(value, str):
            message.loss_fn_config_v2[key].text = value
        else:
            message.loss_fn_config_v2[key].number = value
    for datum in request.data:
        encoded = message.data.add()
        encoded.model_input.add().encoded_text.tokens = _bytes(datum.tokens, "<i4")
        for name, loss_input in datum.loss_inputs.items():
            encoded.loss_fn_inputs[name].CopyFrom(_encode_tensor(loss_input))
        encoded.model_input_spans.extend(map(_encode_span, datum.model_input_spans))
        encoded.loss_fn_input_spans.extend(map(_encode_span, datum.loss_input_spans))
    return message.SerializeToString()


def _encode_span(span: ProvenanceSpan) -> pb.ProvenanceSpan:
    message = pb.ProvenanceSpan()
    arm = message.sampled_tokens if span.is_sampled else message.prompt_tokens
    arm.SetInParent()  # a span of default values must not vanish
    arm.sequence_id, arm.offset, arm.length = span.sequence_id, span.offset, span.length
    return message


def _encode_tensor(tensor: DenseArray | Int32Array | SparseCsr) -> pb.Tensor:
    if isinstance(tensor, SparseCsr):
        csr = pb.SparseCsr(
            values=_bytes(tensor.values),
            crow_indices=_bytes(tensor.crow_indices, "<i8"),
            col_indices=_bytes(tensor.col_indices, "<i8"),
        )
        return pb.Tensor(sparse_csr=csr, dtype=_WIRE_DTYPES[tensor.values.dtype.name], shape=tensor.shape)
    return pb.Tensor(dense=_bytes(tensor), dtype=_WIRE_DTYPES[tensor.dtype.name], shape=tensor.shape)


def _bytes(array: NDArray[np.generic] | DenseArray, dtype: str | None = None) -> bytes:
    """Little-endian, C-contiguous."""
    return np.ascontiguousarray(array, dtype or array.dtype.newbyteorder("<")).tobytes()


# -- results


def encode_forward_backward_output(result: ForwardBackwardResult) -> bytes:
    """ForwardBackwardOutput; consecutive datums whose outputs agree in dtype and trailing shape share a record."""
    message = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord", metrics=result.metrics)
    for _, group in groupby(result.outputs, key=_layout):
        message.loss_fn_outputs.append(_encode_record(list(group)))
    return message.SerializeToString()


def _layout(output: dict[str, DenseArray]) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    return tuple((name, array.dtype.name, array.shape[1:]) for name, array in sorted(output.items()))


def _encode_record(outputs: list[dict[str, DenseArray]]) -> pb.ArrayRecord:
    assert all(output.keys() == outputs[0].keys() for output in outputs), "outputs of one request differ in names"
    record = pb.ArrayRecord(type_tag="ArrayRecord", num_datums=len(outputs))
    for name, first in outputs[0].items():
        parts = [_bytes(output[name]) for output in outputs]
        offsets = np.zeros(len(parts) + 1, "<i8")
        np.cumsum([len(part) for part in parts], out=offsets[1:])
        field = record.fields[name]
        field.data = b"".join(parts)
        field.offsets = offsets.tobytes()
        field.dtype = _WIRE_DTYPES[first.dtype.name]
        field.trailing_shape.extend(first.shape[1:])
    return record


def encode_sample_response(result: SampleResult) -> bytes:
    """SampleResponse; sequence ids do not travel in it."""
    message = pb.SampleResponse(prompt_cache_hit_tokens=result.prompt_cache_hit_tokens)
    for sequence in result.sequences:
        encoded = message.sequences.add(
            stop_reason=_STOP_REASONS[sequence.stop_reason],
            tokens=_bytes(sequence.tokens, "<i4"),
            logprobs=_bytes(sequence.logprobs, "<f4"),
        )
        if sequence.topk_logprobs is not None:
            encoded.topk_sampled_logprobs.CopyFrom(_encode_topk(sequence.topk_logprobs))
    if result.prompt_logprobs is not None:
        message.prompt_logprobs = _bytes(result.prompt_logprobs, "<f4")
    if result.topk_prompt_logprobs is not None:
        message.topk_prompt_logprobs.CopyFrom(_encode_topk(result.topk_prompt_logprobs))
    if result.target_prompt_logprobs is not None:
        message.target_prompt_logprobs.CopyFrom(_encode_tensor(result.target_prompt_logprobs))
    if result.prompt_alt_tokens is not None:
        message.prompt_alt_tokens.tokens.CopyFrom(_encode_tensor(result.prompt_alt_tokens.token_ids))
        message.prompt_alt_tokens.logprobs.CopyFrom(_encode_tensor(result.prompt_alt_tokens.logprobs))
    return message.SerializeToString()


def _encode_topk(topk: TopkLogprobs) -> pb.TopkLogprobs:
    length, k = topk.token_ids.shape
    return pb.TopkLogprobs(
        token_ids=_bytes(topk.token_ids, "<i4"), logprobs=_bytes(topk.logprobs, "<f4"), k=k, length=length
    )
