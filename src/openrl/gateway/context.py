"""What every handler works with: the gateway's parts, and one call to it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from openrl.catalog import Catalog
from openrl.config import ClientConfig, GatewayConfig
from openrl.gateway.row_cache import RowCache
from openrl.gateway.trace_exports import TraceExports
from openrl.protocol.custom_loss import CustomLoss
from openrl.store.base import Blobs, RunRow, SamplerRow, Store


@dataclass(frozen=True, slots=True)
class Hooks:
    """How the process around the gateway is told, and asked."""

    on_cancel: Callable[[str], None]  # a request id whose result nobody waits for
    on_session_end: Callable[[str], None]  # a session id whose client said goodbye
    is_ready: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts; one per process."""

    store: Store
    blobs: Blobs
    catalog: Catalog
    config: GatewayConfig
    client: ClientConfig  # what clients are told to do
    clock: Callable[[], float]  # seconds since the epoch
    new_id: Callable[[], str]  # unguessable
    new_seed: Callable[[], int]
    signing_key: bytes  # of download links and tokens; the same in every gateway
    hooks: Hooks
    runs: RowCache[RunRow]  # only what never changes may be read from these rows
    samplers: RowCache[SamplerRow]
    traces: TraceExports
    losses: RowCache[CustomLoss]  # that clients created


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request of one tenant (the empty id on public routes)."""

    gateway: Gateway
    request: Request
    tenant_id: str

    @property
    def path(self) -> Mapping[str, str]:
        """Parameters taken from the URL's path."""
        return self.request.path_params


Handler = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint; paths are relative to /api/v1."""

    method: str
    path: str
    handler: Handler
    is_public: bool = False
    body: type[BaseModel] | None = None
    """Of its JSON, for /openapi.json; the handler reads it."""
    is_protobuf: bool = False
    query: tuple[str, ...] = ()
