"""The API by plain HTTP, without the SDK."""

from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from openrl.protocol.datum import Datum
from tests.gateway.gateway_server import MODEL


@dataclass(frozen=True)
class Owned:
    """One of everything that belongs to a tenant."""

    session_id: str
    run_id: str
    sampler_id: str
    request_id: str
    weights_path: str
    sampler_path: str
    user_id: str
    key_id: str
    share_id: str


def create_owned(http: httpx.Client) -> Owned:
    session_id = post(http, "create_session", {})["session_id"]
    model = {"session_id": session_id, "model_seq_id": 0, "base_model": MODEL.name, "lora_config": {"rank": 8}}
    run_id = post(http, "create_model", model)["model_id"]
    weights = result(http, "save_weights", {"model_id": run_id, "seq_id": 1, "path": "w"})
    sampler = result(http, "save_weights_for_sampler", {"model_id": run_id, "seq_id": 2, "path": "s"})
    sampling = {"session_id": session_id, "sampling_session_seq_id": 0, "base_model": MODEL.name}
    sampler_id = post(http, "create_sampling_session", sampling)["sampling_session_id"]
    request_id = post(http, "asample", sample_body(sampler_id, 1))["request_id"]
    num_users = len(http.get("admin/users").json()["users"])
    user_id = post(http, "admin/users", {"email": f"{num_users}@example.org"})["user_id"]
    key_id = post(http, "admin/keys", {"label": "spare", "user_id": user_id})["key_id"]
    shares = f"training_runs/{run_id}/checkpoints/weights/w/shares"
    share_id = post(http, shares, {"ttl_seconds": 60, "label": "lent"})["share_id"]
    paths = (weights["path"], sampler["path"])
    return Owned(session_id, run_id, sampler_id, request_id, *paths, user_id, key_id, share_id)


def sample_body(sampler_id: str, seq_id: int, **changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = {
        "sampling_session_id": sampler_id,
        "seq_id": seq_id,
        "num_samples": 1,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
        "sampling_params": {"max_tokens": 4},
    }
    return {**body, **changes}


def post(http: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def result(http: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    return post(http, "retrieve_future", {"request_id": post(http, path, body)["request_id"]})


def datum(tokens: list[int]) -> Datum:
    ids = np.array(tokens, np.int32)
    return Datum(ids, {"target_tokens": ids.astype(np.int64), "weights": np.ones(len(ids), np.float32)})
