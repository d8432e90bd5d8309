"""schemathesis asks what /openapi.json describes, right and wrong, with ids that exist and ids that do not."""

import contextlib
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, Case, GenerationMode

from openrl.gateway.app import API_PREFIX
from openrl.gateway.error_help import HELP
from tests.gateway.gateway_server import KEYS
from tests.gateway.raw_client import Owned
from tests.gateway.refusals import Refusals
from tests.hostile.hostile_server import HostileServer
from tests.hostile.test_mutated_bodies import valid_bodies
from tests.hostile.wire import damaged

SKIPPED = {("DELETE", f"{API_PREFIX}/auth/apikey/me")}
"""It would take the key that all others need."""
NOBODYS = "00000000-0000-4000-8000-000000000000"

schemathesis.openapi.media_type(
    "application/x-protobuf", st.sampled_from(valid_bodies(f"{NOBODYS}:train:0")).flatmap(damaged)
)


@pytest.fixture(scope="module")
def operations(server: HostileServer) -> list[APIOperation[Any, Any, Any, Any]]:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", wait_for_schema=5)
    found: Any = schema.get_all_operations()
    return [each for each in (result.ok() for result in found) if (each.method.upper(), each.path) not in SKIPPED]


def ids_of(owned: Owned) -> dict[str, str]:
    _, _, _, kind, name = owned.weights_path.split("/")
    return {
        "run_id": owned.run_id, "session_id": owned.session_id, "sampler_id": owned.sampler_id, "kind": kind,
        "name": name, "model_id": owned.run_id, "sampling_session_id": owned.sampler_id,
        "request_id": owned.request_id, "path": owned.weights_path, "tinker_path": owned.weights_path,
        "source_path": owned.weights_path, "model_path": owned.sampler_path,
    }  # fmt: skip


def with_real_ids(case: Case[Any], ids: dict[str, str]) -> None:
    """So that more than a look-up is tried."""
    for name in set(case.path_parameters or {}) & ids.keys():
        case.path_parameters[name] = ids[name]
    if isinstance(case.body, dict):
        for name in case.body.keys() & ids.keys():
            case.body[name] = ids[name]


def ask_all(
    operations: list[APIOperation[Any, Any, Any, Any]], owned: Owned, refusals: Refusals, num_cases: int
) -> None:
    ids = ids_of(owned)
    with httpx.Client(headers={"X-API-Key": KEYS["alice"]}, timeout=30) as http:
        for operation in operations:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                ask(operation, mode, http, ids, refusals, num_cases)


def ask(
    operation: APIOperation[Any, Any, Any, Any],
    mode: GenerationMode,
    http: httpx.Client,
    ids: dict[str, str],
    refusals: Refusals,
    num_cases: int,
) -> None:
    @settings(
        max_examples=num_cases, deadline=None, phases=[Phase.generate], database=None,
        derandomize=num_cases < 10,
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode), is_real=st.booleans())
    def check(case: Case[Any], is_real: bool) -> None:
        if is_real:
            with_real_ids(case, ids)
        request: dict[str, Any] = case.as_transport_kwargs(headers={"X-API-Key": KEYS["alice"]})
        content, _ = request.pop("data", None), request.pop("cookies", None)
        request = {name: value for name, value in request.items() if value is not None}
        request["headers"] = {name: value for name, value in request["headers"].items() if name != "Authorization"}
        answer = http.request(**request, content=content)
        refusals.check(answer, request["method"], request["url"], str(request)[:300])

    with contextlib.suppress(Unsatisfiable):  # where nothing is described, nothing can be wrong
        check()


def test_every_endpoint_answers_what_is_described_and_what_is_not(
    operations: list[APIOperation[Any, Any, Any, Any]], owned: Owned, refusals: Refusals
):
    assert len(operations) > 50
    ask_all(operations, owned, refusals, 3)
    assert {"malformed", "missing", "not_found", "out_of_range"} <= refusals.codes <= HELP.keys()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_endpoint_a_hundred_times(
    operations: list[APIOperation[Any, Any, Any, Any]], owned: Owned, refusals: Refusals, server: HostileServer
):
    with server.bounded_memory():
        ask_all(operations, owned, refusals, 100)
