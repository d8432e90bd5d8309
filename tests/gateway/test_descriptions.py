"""/openapi.json, the page of errors, and the shape of every refusal."""

from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from openapi_spec_validator import validate

from openrl.errors import ErrorCode
from openrl.gateway.app import all_routes
from openrl.gateway.error_help import HELP, html_page, markdown_page
from tests.gateway.raw_client import create_owned, sample_body

DOCS = Path(__file__).parents[2] / "docs"


def test_the_description_is_valid_openapi_and_has_every_route(http: httpx.Client):
    document: dict[str, Any] = http.get(f"{origin(http)}/openapi.json").json()
    validate(document)
    described = {(method, path) for path, methods in document["paths"].items() for method in methods}
    itself = ("get", "/openapi.json")
    assert described | {itself} == {(route.method.lower(), prefix + route.path) for prefix, route in all_routes()}


def test_every_error_code_is_explained():
    assert set(HELP) == set(get_args(ErrorCode))
    assert all(f'id="{code}"' in html_page() for code in HELP)


def test_the_page_of_errors_is_up_to_date():
    assert (DOCS / "errors.md").read_text() == markdown_page(), "run `make docs`"


def test_a_refused_value_comes_with_its_code_its_bound_and_a_page_that_explains_it(http: httpx.Client):
    owned = create_owned(http)
    answer = http.post("asample", json=sample_body(owned.sampler_id, 9, sampling_params={"top_p": 1.5}))
    page = f"{origin(http)}/docs/errors#out_of_range"
    assert answer.json() == {
        "detail": "top_p is 1.5; it must be between 0 and 1",
        "code": "out_of_range",
        "value": 1.5,
        "bound": "between 0 and 1",
        "docs": page,
    }
    assert 'id="out_of_range"' in http.get(page).text


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "create_session", {"tags": 7}, 400, "malformed"),
        ("POST", "get_info", {}, 400, "missing"),
        ("POST", "get_info", {"model_id": "nobody:train:0"}, 404, "not_found"),
        ("GET", "no/such/path", None, 404, "not_found"),
        ("PATCH", "sessions", None, 405, "not_supported"),
    ],
)
def test_every_refusal_has_the_same_shape(
    http: httpx.Client, method: str, path: str, body: dict[str, Any] | None, status: int, code: str
):
    answer = http.request(method, path, json=body)
    assert answer.status_code == status
    content = answer.json()
    assert content["code"] == code
    assert content["docs"] == f"{origin(http)}/docs/errors#{code}"
    assert content["detail"]


def test_a_missing_key_is_refused_in_the_same_shape(http: httpx.Client):
    answer = httpx.get(f"{origin(http)}/api/v1/sessions")
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


def origin(http: httpx.Client) -> str:
    return str(http.base_url).removesuffix("/").removesuffix("/api/v1")
