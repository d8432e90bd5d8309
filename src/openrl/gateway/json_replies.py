"""Whether a client wants results as JSON, and which form a result of each kind has."""

from starlette.requests import Request

from openrl.gateway.replies import JSON_TYPE, PROTOBUF_TYPE
from openrl.protocol.json_results import forward_backward_json, sample_json
from openrl.protocol.runs import RequestKind


def accepts_only_json(request: Request) -> bool:
    """SDKs from 0.18.2 on name protobuf; clients that name neither get protobuf."""
    accepted = request.headers.get("accept", "")
    return JSON_TYPE in accepted and PROTOBUF_TYPE not in accepted


def result_json(kind: RequestKind, content: bytes) -> bytes:
    """The JSON form of a stored result of a pass or a sample."""
    return sample_json(content) if kind == "sample" else forward_backward_json(content)
