"""Assembles the gateway: `create_app` is its entry."""

import secrets
import time
import uuid
from collections.abc import Callable
from functools import partial
from itertools import chain

from starlette.types import ASGIApp

from openrl.catalog import Catalog
from openrl.config import AuthConfig, ClientConfig, GatewayConfig
from openrl.gateway.body_budget import BodyBudget
from openrl.gateway.context import Gateway, Route
from openrl.gateway.long_polls import LongPolls
from openrl.gateway.oidc import OidcVerifier
from openrl.gateway.openapi import describe
from openrl.gateway.pauses import Pauses
from openrl.gateway.quotas import QuotaBook
from openrl.gateway.request_rate import RequestRate
from openrl.gateway.router import Router
from openrl.gateway.routes import (
    admin_keys,
    admin_users,
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
    shares,
    telemetry,
    traces,
    training,
    usage,
)
from openrl.gateway.row_cache import RowCache
from openrl.gateway.trace_exports import TraceExports
from openrl.store.base import Blobs, Store
from openrl.store.doomed import free_doomed_objects
from openrl.store.quotas import NO_LIMITS, Limits

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
    shares,
    admin_users,
    admin_keys,
)


def create_app(
    store: Store,
    blobs: Blobs,
    catalog: Catalog,
    config: GatewayConfig,
    clock: Callable[[], float] = time.time,
    *,
    client: ClientConfig | None = None,
    auth: AuthConfig | None = None,
    signing_key: bytes | None = None,
    new_id: Callable[[], str] | None = None,
    new_seed: Callable[[], int] | None = None,
    is_ready: Callable[[], bool] = lambda: True,
    steady: Callable[[], float] = time.monotonic,
    polls: LongPolls | None = None,
    limits: Limits = NO_LIMITS,
    samples_with_vllm: bool = False,
) -> ASGIApp:
    """The ASGI app of one gateway process.

    `signing_key` signs download links and tokens, and must be the same in all gateways of one store; by default it
    lasts as long as the process. `auth` says whose other tokens are taken. `is_ready` says whether work can be done;
    `steady` is a clock that never jumps; `polls` lets the process around the gateway end those that are held.
    `limits` are for tenants that have none of their own. `samples_with_vllm`: refuse what vLLM servers cannot do.
    """
    quota_book = QuotaBook(store, limits, steady)
    gateway = Gateway(
        store=store,
        blobs=blobs,
        free_files=partial(free_doomed_objects, store, blobs),
        catalog=catalog,
        config=config,
        client=client or ClientConfig(),
        clock=clock,
        new_id=new_id or _random_id,
        new_seed=new_seed or _random_seed,
        signing_key=signing_key or secrets.token_bytes(32),
        oidc=OidcVerifier(auth) if auth is not None and auth.oidc_issuer else None,
        is_ready=is_ready,
        tell=store.cluster.tell,
        polls=polls or LongPolls(),
        runs=RowCache(_CACHED_ROWS, _CACHE_AGE_S, steady),
        samplers=RowCache(_CACHED_ROWS, _CACHE_AGE_S, steady),
        traces=TraceExports(store, blobs),
        losses=RowCache(_CACHED_LOSSES, _CACHE_AGE_S, steady),
        bodies=BodyBudget(config.max_body_bytes_in_flight),
        quota_book=quota_book,
        request_rate=RequestRate(quota_book, steady),
        pauses=Pauses(store, catalog, quota_book, steady),
        samples_with_vllm=samples_with_vllm,
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
