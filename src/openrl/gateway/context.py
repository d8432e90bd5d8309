"""What every handler works with: the gateway's parts, and one call to it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from openrl.catalog import Catalog
from openrl.config import ClientConfig, GatewayConfig
from openrl.gateway.body_budget import BodyBudget, BodyLease
from openrl.gateway.long_polls import LongPolls
from openrl.gateway.oidc import OidcVerifier
from openrl.gateway.pauses import Pauses
from openrl.gateway.quotas import QuotaBook
from openrl.gateway.request_rate import RequestRate
from openrl.gateway.row_cache import RowCache
from openrl.gateway.trace_exports import TraceExports
from openrl.protocol.custom_loss import CustomLoss
from openrl.store.base import Blobs, RequestRow, RunRow, SamplerRow, TenantStore
from openrl.store.cluster import Signal
from openrl.store.identities import Identity
from openrl.telemetry.http import note
from openrl.telemetry.http_traces import CallTrace
from openrl.telemetry.logs import request_fields

Access = Literal["read", "write", "admin"]
"""What a role must allow: to look, to make and change one's own, to say who else may."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts; one per process, and one for each project that a key is bound to (`project_view.py`)."""

    store: TenantStore
    blobs: Blobs
    free_files: Callable[[str], Awaitable[int]]  # those under an object key that lost its last checkpoint
    catalog: Catalog
    config: GatewayConfig
    client: ClientConfig  # what clients are told to do
    clock: Callable[[], float]  # seconds since the epoch
    new_id: Callable[[], str]  # unguessable
    new_seed: Callable[[], int]
    signing_key: bytes  # of download links and tokens; the same in every gateway
    oidc: OidcVerifier | None  # of the tokens of an identity provider
    is_ready: Callable[[], bool]  # whether work can be done
    tell: Callable[[Signal], Awaitable[None]]  # the other processes
    polls: LongPolls
    runs: RowCache[RunRow]  # only what never changes may be read from these rows
    samplers: RowCache[SamplerRow]
    traces: TraceExports
    losses: RowCache[CustomLoss]  # that clients created
    bodies: BodyBudget
    quota_book: QuotaBook
    request_rate: RequestRate
    pauses: Pauses
    samples_with_vllm: bool = False  # workers have vLLM servers sample, which cannot do everything


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request of one identity (NOBODY on public routes)."""

    gateway: Gateway  # as the identity may see it
    request: Request
    identity: Identity
    view: Callable[[Identity], Gateway]  # the gateway as somebody else may see it
    lease: BodyLease = field(default_factory=BodyLease)
    """What its body takes of the gateway's budget, until it is answered."""

    @property
    def tenant_id(self) -> str:
        """Who owns what is made and looked at."""
        return self.identity.tenant_id

    @property
    def trace_context(self) -> str | None:
        """Where the spans of what this call queues belong; None while nothing is traced."""
        trace: CallTrace | None = self.request.scope.get("trace")
        return None if trace is None else trace.context

    def note(self, row: RequestRow) -> None:
        """Lines about this call name the request that it is about."""
        note(self.request.scope, **request_fields(row))

    @property
    def path(self) -> Mapping[str, str]:
        """Parameters taken from the URL's path."""
        return self.request.path_params


NOBODY = Identity("", "", "reader", None, "")
Handler = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint; paths are relative to /api/v1."""

    method: str
    path: str
    handler: Handler
    access: Access = "write"
    is_public: bool = False
    body: type[BaseModel] | None = None
    """Of its JSON, for /openapi.json; the handler reads it."""
    is_protobuf: bool = False
    """Whether its body is protobuf, or JSON where `body` says so too."""
    query: tuple[str, ...] = ()
