"""Assembles the gateway: `create_app` is its entry."""

import secrets
import time
import uuid
from collections.abc import Callable
from itertools import chain

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.routing import Route as StarletteRoute

from openrl.catalog import Catalog
from openrl.config import GatewayConfig
from openrl.gateway.context import Gateway, Hooks, Route
from openrl.gateway.endpoint import Endpoint
from openrl.gateway.errors import http_error_response
from openrl.gateway.routes import (
    archive,
    checkpoints,
    custom_losses,
    futures,
    models,
    runs,
    sampling,
    service,
    sessions,
    telemetry,
    training,
)
from openrl.gateway.row_cache import RowCache
from openrl.store.base import Blobs, Store

API_PREFIX = "/api/v1"
_CACHED_ROWS = 10_000
_CACHED_LOSSES = 256
_CACHE_AGE_S = 10.0


def create_app(
    store: Store,
    blobs: Blobs,
    catalog: Catalog,
    config: GatewayConfig,
    clock: Callable[[], float] = time.time,
    *,
    signing_key: bytes | None = None,
    new_id: Callable[[], str] | None = None,
    new_seed: Callable[[], int] | None = None,
    on_cancel: Callable[[str], None] = lambda _: None,
    on_session_end: Callable[[str], None] = lambda _: None,
    is_ready: Callable[[], bool] = lambda: True,
) -> FastAPI:
    """The ASGI app of one gateway process.

    `signing_key` signs download links and must be the same in all gateways of one store; by default it lasts as
    long as the process. `on_cancel` is told of samples that nobody waits for, `on_session_end` of sessions whose
    client finished them, `is_ready` says whether work can be done.
    """
    gateway = Gateway(
        store=store,
        blobs=blobs,
        catalog=catalog,
        config=config,
        clock=clock,
        new_id=new_id or _random_id,
        new_seed=new_seed or _random_seed,
        signing_key=signing_key or secrets.token_bytes(32),
        hooks=Hooks(on_cancel, on_session_end, is_ready),
        runs=RowCache(_CACHED_ROWS, _CACHE_AGE_S, clock),
        samplers=RowCache(_CACHED_ROWS, _CACHE_AGE_S, clock),
        losses=RowCache(_CACHED_LOSSES, _CACHE_AGE_S, clock),
    )
    app = FastAPI(title="OpenRL", openapi_url=None, docs_url=None, redoc_url=None)
    app.add_exception_handler(HTTPException, http_error_response)
    app.router.routes.extend(_starlette_route(gateway, route, API_PREFIX) for route in _routes())
    probes = (route for route in service.ROUTES if route.is_public)
    app.router.routes.extend(_starlette_route(gateway, route, "") for route in probes)
    return app


def _routes() -> tuple[Route, ...]:
    """The first match wins and each is tried in turn, so the busiest stand first."""
    busy = (futures, sampling, training, sessions, telemetry)
    tables = (*busy, models, service, runs, checkpoints, archive, custom_losses)
    return tuple(chain.from_iterable(table.ROUTES for table in tables))


def _starlette_route(gateway: Gateway, route: Route, prefix: str) -> StarletteRoute:
    return StarletteRoute(prefix + route.path, Endpoint(gateway, route), methods=[route.method])


def _random_id() -> str:
    return str(uuid.uuid4())


def _random_seed() -> int:
    return secrets.randbelow(2**63)
