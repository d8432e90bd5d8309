"""The API by plain HTTP, for what the SDK never does: other orders, repeats, guesses."""

import time
from collections.abc import Sequence
from typing import Any

import httpx
from tinker import types
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.proto.response_conv import deserialize_forward_backward_output

PROTOBUF = {"Content-Type": "application/x-protobuf"}
LONGEST_S = 60.0


class RawApi:
    """One tenant's calls."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def post(self, call: str, /, **body: Any) -> dict[str, Any]:
        """The answer to a JSON body; it must be a success."""
        answer = self.http.post(call, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def submit_backward(self, run_id: str, seq_id: int, data: Sequence[types.Datum]) -> str:
        """Submit a cross-entropy forward_backward; returns its request_id."""
        answer = self.http.post("forward_backward", content=backward_body(run_id, seq_id, data), headers=PROTOBUF)
        assert answer.status_code == 200, answer.text
        return answer.json()["request_id"]

    def submit_step(self, run_id: str, seq_id: int, learning_rate: float = 1e-2) -> str:
        """Submit an optim_step; returns its request_id."""
        adam = {"learning_rate": learning_rate, "beta1": 0.9, "beta2": 0.95, "eps": 1e-12, "weight_decay": 0.0}
        body = {"model_id": run_id, "seq_id": seq_id, "adam_params": adam | {"grad_clip_norm": 0.0}}
        return self.post("optim_step", **body)["request_id"]

    def poll(self, request_id: str) -> httpx.Response:
        """One long poll."""
        return self.http.post("retrieve_future", json={"request_id": request_id, "allow_metadata_only": False})

    def result(self, request_id: str) -> dict[str, Any]:
        """The JSON result; the request must have succeeded."""
        answer = self.finished(request_id).json()
        assert "error" not in answer, answer
        return answer

    def output(self, request_id: str) -> types.ForwardBackwardOutput:
        """The result of a forward_backward, which must have succeeded."""
        answer = self.finished(request_id)
        assert answer.headers["Content-Type"] == PROTOBUF["Content-Type"], answer.text
        return deserialize_forward_backward_output(answer.content)

    def new_session(self) -> str:
        return self.post("create_session", tags=[], user_metadata={}, sdk_version="0.38.0")["session_id"]

    def held_sample(self) -> tuple[str, dict[str, Any]]:
        """The id of the first sample that has to wait, and what a poll says of it; those before it may end."""
        session_id = self.new_session()
        sampler = {"session_id": session_id, "sampling_session_seq_id": 0, "base_model": "tiny"}
        wanted = {
            "sampling_session_id": self.post("create_sampling_session", **sampler)["sampling_session_id"],
            "num_samples": 1,
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
            "sampling_params": {"max_tokens": 2},
        }
        seq_id, deadline = 0, time.monotonic() + LONGEST_S
        while time.monotonic() < deadline:
            seq_id += 1
            request_id = self.post("asample", **wanted, seq_id=seq_id)["request_id"]
            polled = self.poll(request_id)
            while polled.status_code == 408 and polled.json()["queue_state"] == "active":
                assert time.monotonic() < deadline, "a poll does not tell why it waits"
                polled = self.poll(request_id)
            if polled.status_code == 408:
                return request_id, polled.json()
        raise AssertionError("no sample has to wait")

    def finished(self, request_id: str) -> httpx.Response:
        """The answer of the poll that ends the waiting."""
        answer = self.poll(request_id)
        while answer.status_code == 408:
            answer = self.poll(request_id)
        assert answer.status_code == 200, answer.text
        return answer


def backward_body(run_id: str, seq_id: int, data: Sequence[types.Datum]) -> bytes:
    request = types.ForwardBackwardRequest(
        forward_backward_input=types.ForwardBackwardInput(data=list(data), loss_fn="cross_entropy"),
        model_id=run_id,
        seq_id=seq_id,
    )
    return forward_backward_request_to_proto(request).SerializeToString()
