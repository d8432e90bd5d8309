"""Says what is wrong with a result, or nothing."""

import json
import math
from collections.abc import Sequence

import numpy as np
from google.protobuf.message import DecodeError

from openrl.protocol import tinker_pb2 as pb


def sample_fault(body: bytes, num_samples: int, max_tokens: int, vocab_size: int) -> str:
    """Of a SampleResponse: numbers of samples and tokens, ids in the vocabulary, finite log-probabilities."""
    message = pb.SampleResponse()
    try:
        message.ParseFromString(body)
    except DecodeError:
        return "is no SampleResponse"
    if len(message.sequences) != num_samples:
        return "another number of samples than asked for"
    for sequence in message.sequences:
        tokens, logprobs = np.frombuffer(sequence.tokens, "<i4"), np.frombuffer(sequence.logprobs, "<f4")
        if not 1 <= len(tokens) <= max_tokens or len(tokens) != len(logprobs):
            return "wrong number of tokens or log-probabilities"
        if tokens.min() < 0 or tokens.max() >= vocab_size:
            return "a token outside the vocabulary"
        if not np.isfinite(logprobs).all() or logprobs.max() > 0:
            return "log-probabilities that are none"
    return ""


def gradient_fault(body: bytes, lengths: Sequence[int]) -> str:
    """Of a ForwardBackwardOutput for datums of these lengths."""
    message = pb.ForwardBackwardOutput()
    try:
        message.ParseFromString(body)
    except DecodeError:
        return "is no ForwardBackwardOutput"
    if sum(record.num_datums for record in message.loss_fn_outputs) != len(lengths):
        return "another number of datums than sent"
    logprobs = [np.frombuffer(record.fields["logprobs"].data, "<f4") for record in message.loss_fn_outputs]
    if sum(map(len, logprobs)) != sum(lengths):
        return "another number of log-probabilities than targets"
    if not all(np.isfinite(each).all() and each.max() <= 0 for each in logprobs):
        return "log-probabilities that are none"
    loss = message.metrics.get("loss:sum", math.nan)
    expected = -sum(float(each.sum(dtype=np.float64)) for each in logprobs)
    return "" if math.isclose(loss, expected, rel_tol=1e-4) else "a loss that is not the sum of its tokens'"


def loss_of(body: bytes) -> float:
    """The loss in a ForwardBackwardOutput."""
    message = pb.ForwardBackwardOutput()
    message.ParseFromString(body)
    return message.metrics["loss:sum"]


def json_fault(body: bytes, name: str) -> str:
    """Of a JSON result that must have a field, with finite numbers where it has numbers."""
    try:
        content = json.loads(body)
    except ValueError:
        return "is no JSON"
    if name not in content:
        return f"has no {name}"
    numbers = content[name].values() if isinstance(content[name], dict) else ()
    return "" if all(math.isfinite(each) for each in numbers) else f"{name} not finite"
