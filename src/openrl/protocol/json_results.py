"""Results of passes and samples in JSON, for clients that do not accept protobuf: SDKs up to 0.18.0.

Floats travel as the decimals of their exact value. What JSON has no word for is written as Python writes it
(NaN, -Infinity), which those clients read; a prompt log-probability that does not exist is null.
"""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from openrl.protocol import tinker_pb2 as pb

_DTYPES: dict[pb.DType, np.dtype[Any]] = {
    pb.DTYPE_FLOAT32: np.dtype("<f4"),
    pb.DTYPE_INT64: np.dtype("<i8"),
    pb.DTYPE_INT32: np.dtype("<i4"),
}
_STOP_REASONS = {pb.STOP_REASON_STOP: "stop", pb.STOP_REASON_LENGTH: "length"}
_ABSENT_LOGPROB = -99999.0


def forward_backward_json(content: bytes) -> bytes:
    """The JSON form of an encoded ForwardBackwardOutput."""
    message = pb.ForwardBackwardOutput.FromString(content)
    outputs = [output for record in message.loss_fn_outputs for output in _outputs(record)]
    metrics = {name: value for name, value in message.metrics.items() if math.isfinite(value)}
    shown = {"loss_fn_output_type": message.loss_fn_output_type, "loss_fn_outputs": outputs, "metrics": metrics}
    return json.dumps(shown).encode()


def _outputs(record: pb.ArrayRecord) -> Iterator[dict[str, Any]]:
    for i in range(record.num_datums):
        yield {name: _tensor(field, i) for name, field in record.fields.items()}


def _tensor(field: pb.BatchedTensor, i: int) -> dict[str, Any]:
    start, stop = np.frombuffer(field.offsets, "<i8")[i : i + 2]
    array = np.frombuffer(field.data[start:stop], _DTYPES[field.dtype]).reshape(-1, *field.trailing_shape)
    dtype = "float32" if array.dtype.kind == "f" else "int64"
    return {"data": array.reshape(-1).tolist(), "dtype": dtype, "shape": list(array.shape)}


def sample_json(content: bytes) -> bytes:
    """The JSON form of an encoded SampleResponse, with the fields that these clients know."""
    message = pb.SampleResponse.FromString(content)
    sequences = [
        {
            "stop_reason": _STOP_REASONS[sequence.stop_reason],
            "tokens": np.frombuffer(sequence.tokens, "<i4").tolist(),
            "logprobs": _floats(sequence.logprobs),
        }
        for sequence in message.sequences
    ]
    shown: dict[str, Any] = {"type": "sample", "sequences": sequences}
    if message.HasField("prompt_logprobs"):
        logprobs = _floats(message.prompt_logprobs)
        shown["prompt_logprobs"] = [None if math.isnan(value) else value for value in logprobs]
    if message.HasField("topk_prompt_logprobs"):
        shown["topk_prompt_logprobs"] = _topk(message.topk_prompt_logprobs)
    return json.dumps(shown).encode()


def _floats(data: bytes) -> list[float]:
    return np.frombuffer(data, "<f4").tolist()


def _topk(topk: pb.TopkLogprobs) -> list[list[tuple[int, float]] | None]:
    tokens = np.frombuffer(topk.token_ids, "<i4").reshape(topk.length, topk.k).tolist()
    logprobs = np.frombuffer(topk.logprobs, "<f4").reshape(topk.length, topk.k).tolist()
    return [_topk_row(*row) for row in zip(tokens, logprobs, strict=True)]


def _topk_row(tokens: Sequence[int], logprobs: Sequence[float]) -> list[tuple[int, float]] | None:
    """None where no cell of the row has a value."""
    row = [pair for pair in zip(tokens, logprobs, strict=True) if pair[1] != _ABSENT_LOGPROB]
    return row or None
