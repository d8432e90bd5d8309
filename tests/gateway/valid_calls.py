"""A good call of every endpoint that takes ids or a JSON body: strangers send them, and spoiled ones are refused."""

from collections.abc import Mapping
from typing import Any

from openrl.gateway.app import API_PREFIX, all_routes
from openrl.gateway.context import Route
from tests.gateway.gateway_server import MODEL
from tests.gateway.raw_client import Owned, sample_body
from tests.training.traced_losses import TOTAL, graph_of

ROUTES = all_routes()
Call = tuple[str, str, dict[str, Any] | None]


def json_datums() -> dict[str, Any]:
    """What SDKs before 0.25 send as the input of a pass."""
    targets = {"data": [1, 2, 3], "dtype": "int64", "shape": [3]}
    weights = {"data": [1.0, 1.0, 1.0], "dtype": "float32", "shape": [3]}
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]}
    datum = {"model_input": prompt, "loss_fn_inputs": {"target_tokens": targets, "weights": weights}}
    return {"data": [datum], "loss_fn": "cross_entropy", "loss_fn_config": {}}


def owned_calls(owned: Owned) -> list[Call]:
    """Those that name something that belongs to a tenant."""
    run, path = owned.run_id, owned.sampler_path
    at = f"training_runs/{run}/checkpoints"
    step = {"model_id": run, "seq_id": 50}
    new_run = {"session_id": owned.session_id, "model_seq_id": 9}
    samples = {"type": "sampling_session", "sampling_session_id": owned.sampler_id, "cloned_sampler_id": 0}
    new_sampler = {"session_id": owned.session_id, "sampling_session_seq_id": 7}
    return [
        ("POST", "session_heartbeat", {"session_id": owned.session_id}),
        ("POST", f"sessions/{owned.session_id}/finish", {"reason": {"type": "success"}, "detail": "well"}),
        ("GET", f"sessions/{owned.session_id}", None),
        ("POST", "create_model", {**new_run, "base_model": MODEL.name, "lora_config": {"rank": 8, "seed": 1}}),
        ("POST", "load_weights", {**new_run, "path": owned.weights_path}),
        ("POST", "load_weights", {**step, "path": owned.weights_path}),
        ("POST", "forward", {**step, "forward_input": json_datums()}),
        ("POST", "forward_backward", {**step, "forward_backward_input": json_datums()}),
        ("POST", "get_info", {"model_id": run}),
        ("POST", "optim_step", {**step, "adam_params": {}}),
        ("POST", "save_weights", {**step, "path": "x"}),
        ("POST", "save_weights_for_sampler", {**step, "path": "x"}),
        ("POST", "save_weights_external", {**step, "path": "x"}),
        ("POST", "unload_model", {"model_id": run}),
        ("POST", "create_sampling_session", {**new_sampler, "base_model": MODEL.name}),
        ("GET", f"samplers/{owned.sampler_id}", None),
        ("POST", "asample", sample_body(owned.sampler_id, 50, prompt_logprobs=True)),
        ("POST", "join_sampling_session", {"sampling_session_id": owned.sampler_id}),
        ("POST", "retrieve_futures", {"target": samples, "prev_cursor": 0, "timeout": 0.0}),
        ("POST", "create_custom_loss", {**graph_of(TOTAL), "session_id": owned.session_id, "custom_loss_seq_id": 5}),
        ("POST", "copy_weights", {"source_path": path, "destination_project_id": "p", "ttl_seconds": 3600}),
        ("POST", "retrieve_future", {"request_id": owned.request_id}),
        ("POST", "cancel_future", {"request_id": owned.request_id}),
        ("GET", f"training_runs/{run}", None),
        ("GET", at, None),
        ("DELETE", f"{at}/sampler_weights/s", None),
        ("POST", f"{at}/sampler_weights/s/publish", None),
        ("DELETE", f"{at}/sampler_weights/s/publish", None),
        ("PUT", f"{at}/sampler_weights/s/ttl", {"ttl_seconds": 3600}),
        ("GET", f"{at}/sampler_weights/s/archive", None),
        ("GET", f"{at}/external_weights/e/external_weights_urls", None),
        ("POST", "weights_info", {"tinker_path": path}),
        ("PUT", f"sessions/{owned.session_id}/project", {"project_id": "mine"}),
        ("GET", f"sessions/{owned.session_id}/trace_export", None),
        ("POST", f"{at}/sampler_weights/s/shares", {"ttl_seconds": 60, "label": "x"}),
        ("DELETE", f"shares/{owned.share_id}", None),
        ("PATCH", f"admin/users/{owned.user_id}", {"role": "reader", "is_disabled": False}),
        ("POST", "admin/keys", {"user_id": owned.user_id, "role": "reader", "label": "x", "ttl_seconds": 60}),
        ("POST", f"admin/keys/{owned.key_id}/rotate", {"overlap_seconds": 5}),
        ("DELETE", f"admin/keys/{owned.key_id}", None),
    ]


def free_calls() -> list[Call]:
    """Those that name nothing of anybody's."""
    search = {"user_metadata": {"a": "b"}, "owner": {"type": "own"}, "statuses": [{"type": "active"}], "limit": 5}
    session = {"tags": ["a"], "user_metadata": {"a": "b"}, "sdk_version": "1", "project_id": "p", "display_name": "d"}
    return [
        ("POST", "create_session", session),
        ("POST", "client/config", {"sdk_version": "1"}),
        ("POST", "client/dynamic_config", {"sdk_version": "1"}),
        ("POST", "sessions/search", search),
        ("POST", "admin/users", {"email": "a@b.c", "subject": "s", "display_name": "d", "role": "member"}),
        ("POST", "admin/keys", {"project_id": "p", "role": "member"}),
    ]


def route_of(call: Call) -> tuple[Route, Mapping[str, str]]:
    """The endpoint of a call, and what its path's parameters are."""
    method, path, _ = call
    segments = path.split("/")
    for prefix, route in ROUTES:
        names = route.path.strip("/").split("/")
        pairs = list(zip(names, segments, strict=False))
        is_same = all(name == segment or name.startswith("{") for name, segment in pairs)
        if prefix == API_PREFIX and route.method == method and len(names) == len(segments) and is_same:
            return route, {name.strip("{}"): segment for name, segment in pairs if name.startswith("{")}
    raise LookupError(call)
