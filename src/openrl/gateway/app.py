"""Assembles the gateway: `create_app` is its entry."""

import secrets
import time
import uuid
from collections.abc import Callable
from itertools import chain

from starlette.types import ASGIApp

from openrl.catalog import Catalog
from openrl.config import ClientConfig, GatewayConfig
from openrl.gateway.context import Gateway, Hooks, Route
from openrl.gateway.openapi import describe
from openrl.gateway.router import Router
from openrl.gateway.routes import (
    api_keys,
    archive,
    audit,
    checkpoints,
    copy_weights,
    custom_losses,
    external_weights,
    futures,
    json_forward,
    models,
    pages,
    runs,
    sampling,
    sampling_clients,
    service,
    session_search,
    sessions,
    telemetry,
    traces,
    training,
    usage,
)
from openrl.gateway.row_cache import RowCache
from openrl.gateway.trace_exports import TraceExports
from openrl.store.base import Blobs, Store

API_PREFIX = "/api/v1"
_CACHED_ROWS = 10_000
_CACHED_LOSSES = 256
_CACHE_AGE_S = 10.0
_API_TABLES = (
    sessions,
    training,
    sampling,
    sampling_clients,
    futures,
    runs,
    checkpoints,
    models,
    service,
    telemetry,
    archive,
    json_forward,
    api_keys,
    audit,
    session_search,
    traces,
    usage,
    copy_weights,
    external_weights,
    custom_losses,
)


def create_app(
    store: Store,
    blobs: Blobs,
    catalog: Catalog,
    config: GatewayConfig,
    clock: Callable[[], float] = time.time,
    *,
    client: ClientConfig | None = None,
    signing_key: bytes | None = None,
    new_id: Callable[[], str] | None = None,
    new_seed: Callable[[], int] | None = None,
    on_cancel: Callable[[str], None] = lambda _: None,
    on_session_end: Callable[[str], None] = lambda _: None,
    is_ready: Callable[[], bool] = lambda: True,
) -> ASGIApp:
    """The ASGI app of one gateway process.

    `signing_key` signs download links and tokens, and must be the same in all gateways of one store; by default it
    lasts as long as the process. `on_cancel` is told of samples that nobody waits for, `on_session_end` of sessions
    whose client finished them, `is_ready` says whether work can be done.
    """
    gateway = Gateway(
        store=store,
        blobs=blobs,
        catalog=catalog,
        config=config,
        client=client or ClientConfig(),
        clock=clock,
        new_id=new_id or _random_id,
        new_seed=new_seed or _random_seed,
        signing_key=signing_key or secrets.token_bytes(32),
        hooks=Hooks(on_cancel, on_session_end, is_ready),
        runs=RowCache(_CACHED_ROWS, _CACHE_AGE_S, clock),
        samplers=RowCache(_CACHED_ROWS, _CACHE_AGE_S, clock),
        traces=TraceExports(store, blobs),
        losses=RowCache(_CACHED_LOSSES, _CACHE_AGE_S, clock),
    )
    return Router(gateway, all_routes())


def all_routes() -> list[tuple[str, Route]]:
    """Every endpoint with the prefix of its path."""
    api = [(API_PREFIX, route) for route in chain.from_iterable(table.ROUTES for table in _API_TABLES)]
    probes = [("", route) for route in service.ROUTES if route.is_public]
    described = [*api, *probes, *(("", route) for route in pages.ROUTES)]
    return [*described, ("", pages.description(describe(described)))]


def _random_id() -> str:
    return str(uuid.uuid4())


def _random_seed() -> int:
    return secrets.randbelow(2**63)
