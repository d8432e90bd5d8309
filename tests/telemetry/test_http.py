from typing import Any

from httpx import ASGITransport, AsyncClient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from openrl.telemetry.http import MeteredApp
from openrl.telemetry.metrics import Metrics, create_metrics


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def client_of(metrics: Metrics) -> AsyncClient:
    app: Any = MeteredApp(Starlette(routes=[Route("/runs/{run_id}", hello)]), metrics)
    return AsyncClient(transport=ASGITransport(app), base_url="http://test")


async def test_answers_are_counted_by_route_not_by_path():
    metrics = create_metrics()
    async with client_of(metrics) as client:
        for run_id in ("a", "b", "c"):
            assert (await client.get(f"/runs/{run_id}")).text == "hello"
        text = (await client.get("/metrics")).text
    assert 'openrl_http_requests_total{method="GET",route="/runs/{run_id}",status="200"} 3.0' in text
    assert "/runs/a" not in text


async def test_paths_that_do_not_exist_share_one_label():
    metrics = create_metrics()
    async with client_of(metrics) as client:
        await client.get("/nothing")
        await client.get("/nothing-else")
    assert b'route="unmatched",status="404"} 2.0' in metrics.render()
