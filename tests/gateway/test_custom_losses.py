"""create_custom_loss by plain HTTP: retries, tenants, what is refused."""

from typing import Any

import httpx
import pytest

from openrl.protocol.codec import encode_forward_backward
from openrl.protocol.datum import ForwardBackwardInput
from openrl.store.unused_objects import free_custom_losses
from tests.gateway.gateway_server import GatewayServer
from tests.gateway.raw_client import Owned, create_owned, datum, post, result
from tests.training.traced_losses import REF, TOTAL, call, graph_of

LATER = 1e11  # long after every use


def body(owned: Owned, seq_id: int = 0, *calls: dict[str, Any]) -> dict[str, Any]:
    return {**graph_of(*calls, TOTAL), "session_id": owned.session_id, "custom_loss_seq_id": seq_id}


def pass_body(owned: Owned, seq_id: int, **config: str) -> bytes:
    return encode_forward_backward(ForwardBackwardInput(owned.run_id, seq_id, (datum([1, 2]),), "custom", dict(config)))


def send(http: httpx.Client, content: bytes) -> httpx.Response:
    return http.post("forward_backward", content=content, headers={"content-type": "application/x-protobuf"})


def test_equal_losses_are_one_and_a_retry_is_the_same_request(http: httpx.Client, owned: Owned):
    first = post(http, "create_custom_loss", body(owned))
    assert post(http, "create_custom_loss", body(owned)) == first
    one = result(http, "create_custom_loss", body(owned))["loss_id"]
    assert result(http, "create_custom_loss", body(owned, 1))["loss_id"] == one
    assert result(http, "create_custom_loss", body(owned, 2, call("z", "torch.exp", REF)))["loss_id"] != one
    assert result(http, "create_custom_loss", body(owned, 0, call("z", "torch.exp", REF)))["loss_id"] == one


def test_a_loss_belongs_to_its_tenant(http: httpx.Client, bob_http: httpx.Client, owned: Owned):
    loss_id = result(http, "create_custom_loss", body(owned))["loss_id"]
    assert send(http, pass_body(owned, 3, loss_id=loss_id)).status_code == 200
    theirs = create_owned(bob_http)
    refused = send(bob_http, pass_body(theirs, 3, loss_id=loss_id))
    assert refused.status_code == 404
    assert refused.json()["detail"] == f"custom loss {loss_id!r} does not exist"
    assert bob_http.post("create_custom_loss", json=body(owned)).status_code == 404
    assert result(bob_http, "create_custom_loss", body(theirs))["loss_id"] == loss_id
    assert send(bob_http, pass_body(theirs, 4, loss_id=loss_id)).status_code == 200


def test_a_loss_is_kept_for_every_session_that_used_it_and_gone_after_its_time(
    server: GatewayServer, http: httpx.Client, bob_http: httpx.Client, owned: Owned
):
    def free_unused() -> int:
        return server.call(free_custom_losses(server.store, server.blobs, LATER))

    loss_id = result(http, "create_custom_loss", body(owned))["loss_id"]
    user, theirs = create_owned(http), create_owned(bob_http)
    assert send(http, pass_body(user, 3, loss_id=loss_id)).status_code == 200
    assert send(bob_http, pass_body(theirs, 3, loss_id=loss_id)).status_code == 404
    close(server, owned, "alice")
    assert free_unused() == 0
    assert send(http, pass_body(user, 4, loss_id=loss_id)).status_code == 200
    close(server, user, "alice")
    assert free_unused() > 0
    late = create_owned(http)
    assert send(http, pass_body(late, 3, loss_id=loss_id)).status_code == 404
    assert result(http, "create_custom_loss", body(late))["loss_id"] == loss_id
    assert send(http, pass_body(late, 4, loss_id=loss_id)).status_code == 200


def close(server: GatewayServer, owned: Owned, tenant_id: str) -> None:
    server.call(server.store.end_session(tenant_id, owned.session_id, "finished", ""))
    server.call(server.store.close_run(owned.run_id))


@pytest.mark.parametrize("config", [{}, {"loss_id": "../x"}, {"loss_id": ""}, {"loss": "x"}])
def test_a_pass_without_a_known_loss_is_refused_and_uses_up_its_number(
    http: httpx.Client, owned: Owned, config: dict[str, str]
):
    refused = send(http, pass_body(owned, 3, **config))
    assert refused.status_code in (400, 404)
    step = {"model_id": owned.run_id, "seq_id": 4, "adam_params": {}}
    assert "metrics" in result(http, "optim_step", step)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"inputs": []}, "inputs"),
        ({"graph": {"format": 1, "nodes": []}}, "nodes"),
        ({"custom_loss_seq_id": -1}, "custom_loss_seq_id"),
        ({"name": "x" * 129}, "name"),
        ({"name": "x", "graph": {"format": 1, "nodes": [call("x" * 2**20, "torch.exp")]}}, "it may take 1048576"),
    ],
)
def test_a_definition_out_of_bounds_is_refused(http: httpx.Client, owned: Owned, change: dict[str, Any], part: str):
    answer = http.post("create_custom_loss", json={**body(owned), **change})
    assert answer.status_code in (400, 413), answer.text
    assert part in answer.json()["detail"] or answer.status_code == 413


def test_a_session_that_is_over_takes_no_loss(http: httpx.Client, owned: Owned):
    http.post(f"sessions/{owned.session_id}/finish", json={"reason": {"type": "success"}, "detail": None})
    assert http.post("create_custom_loss", json=body(owned)).status_code == 410
