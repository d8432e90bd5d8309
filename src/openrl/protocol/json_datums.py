"""Training data in JSON, as SDKs before 0.25 send it (tinker-api §8.1), to typed arrays.

The arrays are those that the protobuf codec makes of the same data, to the bit: JSON carries a float32 exactly.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from openrl.errors import BadValue, InvalidRequest
from openrl.protocol.codec import check_csr, check_sizes, shaped
from openrl.protocol.datum import Datum, DenseArray, ForwardBackwardInput, Int32Array, Int64Array, LossInput, SparseCsr
from openrl.protocol.wire import Id, Prompt, TensorData, TrainingSeqId, WireModel

_MAX_INT32 = 2**31 - 1
_MAX_INT64 = 2**63 - 1
_MAX_FLOAT32 = float(np.finfo(np.float32).max)


class JsonDatum(WireModel):
    """One training example."""

    model_input: Prompt
    loss_fn_inputs: dict[str, TensorData]


class JsonPass(WireModel):
    """What to compute."""

    data: Annotated[tuple[JsonDatum, ...], Field(fail_fast=True)]
    loss_fn: str
    loss_fn_config: dict[str, float | str] | None = None


class JsonForwardRequest(WireModel):
    """Body of `forward`."""

    model_id: Id
    seq_id: TrainingSeqId
    forward_input: JsonPass


class JsonForwardBackwardRequest(WireModel):
    """Body of `forward_backward`."""

    model_id: Id
    seq_id: TrainingSeqId
    forward_backward_input: JsonPass


def to_forward_backward(request: JsonForwardRequest | JsonForwardBackwardRequest) -> ForwardBackwardInput:
    """The input that the body stands for; raises InvalidRequest that names the datum, the value and the bound."""
    is_forward_only = isinstance(request, JsonForwardRequest)
    given = request.forward_input if is_forward_only else request.forward_backward_input
    return ForwardBackwardInput(
        run_id=request.model_id,
        seq_id=request.seq_id,
        data=tuple(_datum(datum, f"datum {i}") for i, datum in enumerate(given.data)),
        loss_fn=given.loss_fn,
        loss_fn_config=given.loss_fn_config or {},
        is_forward_only=is_forward_only,
    )


def _datum(datum: JsonDatum, where: str) -> Datum:
    return Datum(
        tokens=_tokens(datum.model_input, where),
        loss_inputs={name: _tensor(tensor, f"{where} {name!r}") for name, tensor in datum.loss_fn_inputs.items()},
    )


def _tokens(prompt: Prompt, where: str) -> Int32Array:
    tokens: list[int] = []
    for chunk in prompt.chunks:
        if chunk.type != "encoded_text" or chunk.tokens is None:
            raise BadValue(f"{where}: model input chunk: type", chunk.type, "encoded_text", "not_supported")
        tokens.extend(chunk.tokens)
    _check_range(tokens, -_MAX_INT32 - 1, _MAX_INT32, f"{where} tokens")
    return np.asarray(tokens, np.int32)


def _tensor(tensor: TensorData, where: str) -> LossInput:
    values = _values(tensor, where)
    check_sizes(tensor.shape or (), where)
    if tensor.sparse_crow_indices is not None or tensor.sparse_col_indices is not None:
        return _sparse(tensor, values, where)
    return shaped(values, tensor.shape or (), where)


def _sparse(tensor: TensorData, values: DenseArray, where: str) -> SparseCsr:
    shape = tensor.shape or ()
    if len(shape) != 2:
        raise BadValue(f"{where}: shape", list(shape)[:8], "of 2 dimensions, as the tensor is sparse", "wrong_shape")
    if tensor.sparse_crow_indices is None or tensor.sparse_col_indices is None:
        raise InvalidRequest(f"{where}: sparse_crow_indices and sparse_col_indices come together", "missing")
    crow = _integers(tensor.sparse_crow_indices, f"{where} sparse_crow_indices")
    col = _integers(tensor.sparse_col_indices, f"{where} sparse_col_indices")
    check_csr(crow, col, values.size, shape, where)
    return SparseCsr(values, crow, col, (shape[0], shape[1]))


def _values(tensor: TensorData, where: str) -> DenseArray:
    if tensor.dtype == "float32":
        _check_range(tensor.data, -_MAX_FLOAT32, _MAX_FLOAT32, where)
        return np.asarray(tensor.data, np.float64).astype(np.float32)
    whole = [value for value in tensor.data if isinstance(value, int)]
    if len(whole) != len(tensor.data):
        fraction = next(value for value in tensor.data if not isinstance(value, int))
        raise BadValue(f"{where}: entry", fraction, "a whole number, as dtype is int64", "wrong_dtype")
    return _integers(whole, where)


def _integers(values: list[int] | tuple[int, ...], where: str) -> Int64Array:
    _check_range(values, -_MAX_INT64 - 1, _MAX_INT64, where)
    return np.asarray(values, np.int64)


def _check_range(values: Sequence[float], low: float, high: float, where: str) -> None:
    """Arrays cannot hold what JSON can."""
    if values and not low <= min(values) <= max(values) <= high:
        worst = min(values) if min(values) < low else max(values)
        raise BadValue(f"{where}: entry", worst, f"between {low} and {high}")
