"""Results in JSON against what was encoded."""

import json
from typing import Any

import numpy as np

from openrl.protocol.codec import encode_forward_backward_output, encode_sample_response
from openrl.protocol.datum import DenseArray
from openrl.protocol.json_results import forward_backward_json, sample_json
from openrl.protocol.results import ForwardBackwardResult, SampledSequence, SampleResult, TopkLogprobs

ROW = np.array([-0.1, -1e-38, -3.0], np.float32)
MATRIX = np.array([[1, 2], [3, 2**62]], np.int64)


def test_outputs_keep_order_shape_and_every_bit():
    outputs: tuple[dict[str, DenseArray], ...] = ({"x": ROW}, {"x": ROW[:0]}, {"x": MATRIX}, {"x": ROW[:2]})
    result = ForwardBackwardResult(outputs, {"loss:sum": 0.1, "odd:sum": float("nan")})
    shown = json.loads(forward_backward_json(encode_forward_backward_output(result)))
    assert shown["metrics"] == {"loss:sum": 0.1}
    assert [output["x"]["shape"] for output in shown["loss_fn_outputs"]] == [[3], [0], [2, 2], [2]]
    for output, expected in zip(shown["loss_fn_outputs"], outputs, strict=True):
        values = np.asarray(output["x"]["data"], output["x"]["dtype"]).reshape(output["x"]["shape"])
        assert values.tobytes() == expected["x"].tobytes()


def test_samples_show_what_these_clients_know():
    sequences = (
        SampledSequence("stop", np.array([4, 0], np.int32), ROW[:2]),
        SampledSequence("length", np.array([], np.int32), ROW[:0]),
    )
    topk = TopkLogprobs(
        np.array([[0, 0], [7, 0]], np.int32), np.array([[-99999.0, -99999.0], [-0.5, -99999.0]], np.float32)
    )
    prompt_logprobs = np.array([np.nan, -0.25], np.float32)
    shown = as_json(SampleResult(sequences, prompt_logprobs, topk))
    assert shown["type"] == "sample"
    assert shown["sequences"] == [
        {"stop_reason": "stop", "tokens": [4, 0], "logprobs": [float(ROW[0]), float(ROW[1])]},
        {"stop_reason": "length", "tokens": [], "logprobs": []},
    ]
    assert shown["prompt_logprobs"] == [None, -0.25]
    assert shown["topk_prompt_logprobs"] == [None, [[7, -0.5]]]


def test_what_was_not_asked_for_is_absent():
    assert as_json(SampleResult(())) == {"type": "sample", "sequences": []}


def as_json(result: SampleResult) -> dict[str, Any]:
    return json.loads(sample_json(encode_sample_response(result)))
