"""The contract of the store: rows that survive a restart.

Rules for every implementation
- A method returns after its effect is durable (committed, payload bytes on disk). Concurrent calls
  share commits; each call still succeeds or fails alone.
- Rows that belong to a tenant are looked up with that tenant's id; a row of another tenant raises
  `NotFound` exactly as a missing one does.
- Creations with a retry identity (sessions: idempotency key; runs: session + model_seq_id; samplers: session +
  sampling_session_seq_id; requests: `RequestRow.dedupe_key`) return the first row when repeated, and change nothing.
- Times are seconds since the epoch (float, UTC).
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

from openrl.errors import ErrorCategory
from openrl.protocol.runs import CheckpointKind, RequestKind, RunSpec
from openrl.store.blob_contract import Blobs as Blobs
from openrl.store.blob_contract import PacksInUse as PacksInUse
from openrl.store.cluster import Cluster
from openrl.store.identities import Actor, Identities, ShareRow, TenantIdentities
from openrl.store.identities import ApiKeyRow as ApiKeyRow
from openrl.store.identities import TenantRow as TenantRow
from openrl.store.ledger import DEFAULT_PROJECT, Ledger, TenantLedger
from openrl.store.quotas import UNBOUNDED, Bound, Quotas, TenantQuotas

RequestState = Literal["queued", "done", "failed", "cancelled"]
SessionState = Literal["active", "finished", "expired"]
MAX_ENDED = 1000
Json = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One client process as the SDK announces it."""

    session_id: str
    tenant_id: str
    created_at: float
    last_heartbeat_at: float
    sdk_version: str = ""
    tags: tuple[str, ...] = ()
    user_metadata: Json | None = None
    display_name: str | None = None
    project_id: str = DEFAULT_PROJECT
    state: SessionState = "active"
    end_reason: str | None = None
    idempotency_key: str | None = None
    user_id: str = ""  # who made it, if that is known


@dataclass(frozen=True, slots=True)
class RunRow:
    """One training run. `snapshot_seq_id` is -1 until the first snapshot.

    `optimizer_config["type"]` is the spec's optimizer family.
    """

    spec: RunSpec
    session_id: str
    model_seq_id: int
    created_at: float
    last_request_at: float
    optimizer_config: Json
    user_metadata: Json | None = None
    snapshot_key: str | None = None
    snapshot_seq_id: int = -1
    is_closed: bool = False  # unloaded or expired: takes no more requests
    snapshot_bytes: int = 0
    copied_from: str | None = None  # path of the checkpoint that this run holds a copy of; it cannot be trained


@dataclass(frozen=True, slots=True)
class SamplerRow:
    """One sampling session: immutable weights under a name."""

    sampler_id: str
    tenant_id: str
    session_id: str
    base_model: str
    created_at: float
    sampling_session_seq_id: int
    model_path: str | None = None
    adapter_key: str | None = None
    is_ephemeral: bool = False  # from an unnamed save: its adapter files go when its session goes
    size_bytes: int = 0  # of those files


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """Saved weights: key (run_id, kind, name). Copies share the files under `key`; the last to go takes them along."""

    run_id: str
    kind: CheckpointKind
    name: str
    tenant_id: str
    key: str  # object key of the directory of files
    size_bytes: int
    created_at: float
    expires_at: float | None = None
    is_public: bool = False
    user_metadata: Json | None = None


@dataclass(frozen=True, slots=True)
class RequestRow:
    """One queued unit of work. Payload and result live in blobs; rows carry references.

    `dedupe_key`: "run:<run_id>:<seq_id>", "sampler:<sampler_id>:<seq_id>" or "loss:<session_id>:<custom_loss_seq_id>".
    """

    request_id: str
    tenant_id: str
    session_id: str
    kind: RequestKind
    dedupe_key: str
    seq_id: int
    created_at: float
    run_id: str = ""
    sampler_id: str = ""
    base_model: str = ""
    num_tokens: int = 0  # work as admission estimates it: datum tokens, or prompt + samples * max_tokens
    num_sequences: int = 0  # samples of a sample request
    position: int = 0  # order of commit, given by the store
    payload_ref: str = ""  # given by the store
    state: RequestState = "queued"
    result_ref: str = ""
    error: str = ""
    category: ErrorCategory = "unknown"
    finished_at: float | None = None
    end_position: int = 0  # samples: order of ending among all samples, given by the store; 0 until then
    object_key: str = ""  # object that a training request reads, also when it is replayed
    source_run_id: str = ""  # samples: the run of the same session whose weights they come from
    trace_context: str | None = None  # W3C traceparent of the call that made it, if that is traced


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """How a request ended and what came into being with it, committed together."""

    request_id: str
    state: Literal["done", "failed", "cancelled"]
    finished_at: float
    result_ref: str = ""
    error: str = ""
    category: ErrorCategory = "unknown"
    checkpoint: CheckpointRow | None = None
    may_replace: bool = True  # otherwise a checkpoint whose name is taken makes the request fail
    max_stored: Bound = UNBOUNDED  # a save that goes over it fails
    sampler: SamplerRow | None = None
    num_tokens: int = 0  # what passed through the model: prompts that were not cached, and what was generated
    num_sampled_tokens: int = 0
    num_cached_tokens: int = 0  # of prompts, found computed already
    busy_s: float = 0.0
    wall_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A slice of a listing, newest first, and how many there are in all."""

    items: tuple[T, ...]
    total_count: int


class TenantStore(Protocol):
    """What the gateway may ask and do: every look-up carries the tenant. See the module docstring for the rest."""

    @property
    def ledger(self) -> TenantLedger:
        """Projects, usage, the audit log, searches: written along with the rows they are about."""
        ...

    @property
    def identities(self) -> TenantIdentities:
        """Tenants, users, credentials."""
        ...

    @property
    def cluster(self) -> Cluster:
        """Leases, the scheduler's status, signals: what the processes of a store tell each other."""
        ...

    @property
    def quotas(self) -> TenantQuotas:
        """What tenants and projects may use, and what they have in use."""
        ...

    # -- sessions
    async def create_session(self, session: SessionRow) -> SessionRow:
        """Its project comes into being if this is the first that is heard of it."""
        ...

    async def get_session(self, tenant_id: str, session_id: str) -> SessionRow: ...
    async def list_sessions(
        self, tenant_id: str, limit: int, offset: int, project_id: str | None = None
    ) -> Page[SessionRow]: ...
    async def heartbeat(self, tenant_id: str, session_id: str, now: float) -> None:
        """Raises SessionEnded when the session is not active."""
        ...

    async def end_session(self, tenant_id: str, session_id: str, state: SessionState, reason: str) -> None:
        """The first end wins; a later one is accepted and changes nothing."""
        ...

    # -- runs
    async def create_run(
        self, run: RunRow, request: RequestRow, payload: bytes, max_live: Bound = UNBOUNDED
    ) -> tuple[RunRow, RequestRow]:
        """Insert a run and its request 0 together; deduped together. Raises QuotaReached over `max_live` open runs."""
        ...

    async def get_run(self, tenant_id: str, run_id: str) -> RunRow: ...
    async def list_runs(
        self, tenant_id: str, limit: int, offset: int, project_id: str | None = None
    ) -> Page[RunRow]: ...
    async def free_seq_ids(self, tenant_id: str, run_id: str) -> tuple[int, frozenset[int]]:
        """The smallest seq_id of a run that has not finished, and larger ones that have."""
        ...

    async def runs_of_session(self, tenant_id: str, session_id: str) -> tuple[RunRow, ...]: ...

    # -- samplers
    async def create_sampler(self, sampler: SamplerRow) -> SamplerRow: ...
    async def get_sampler(self, tenant_id: str, sampler_id: str) -> SamplerRow: ...
    async def samplers_of_session(self, tenant_id: str, session_id: str) -> tuple[SamplerRow, ...]: ...
    async def join_sampler(self, tenant_id: str, sampler_id: str) -> int:
        """A number from 1 that no other caller was or will be given for this sampler."""
        ...

    # -- requests
    async def enqueue(self, request: RequestRow, payload: bytes) -> RequestRow:
        """Store payload and row; returns the row as stored (the first one if repeated).

        Raises SessionEnded when the run is closed. A request that arrives already `failed` (refused,
        but its number must not block the run) is stored as such with its error, and one that arrives `done`
        with its result.
        """
        ...

    async def get_request(self, tenant_id: str, request_id: str) -> RequestRow: ...
    async def cancel_request(self, tenant_id: str, request_id: str, now: float) -> bool:
        """Whether the request was still queued; it is cancelled then."""
        ...

    async def wait_finished(self, tenant_id: str, request_id: str, timeout_s: float) -> RequestRow | None:
        """The row once it is not queued, or None after `timeout_s`. Woken by `finish`, never polls."""
        ...

    async def ended_samples(
        self, tenant_id: str, sampler_id: str, seq_ids: range, after: int, timeout_s: float
    ) -> tuple[RequestRow, ...]:
        """The sampler's requests with these numbers and an `end_position` over `after`, in that order.

        At most MAX_ENDED of them. Waits up to `timeout_s` for the first; empty if there is none by then. Woken by
        `finish`, never polls. Nobody who passes on the last `end_position` misses one, also over restarts.
        """
        ...

    async def release_results(self, tenant_id: str, sampler_id: str, request_ids: Sequence[str]) -> None:
        """Let go of results that their client has; ids of unfinished requests or other samplers are ignored.

        Many are let go at a time, the rest by `prune`; what a restart forgets goes when it is old.
        """
        ...

    # -- checkpoints
    async def get_checkpoint(self, tenant_id: str, run_id: str, kind: CheckpointKind, name: str) -> CheckpointRow:
        """The tenant's own, or anybody's that is public; expired ones are not found."""
        ...

    async def list_checkpoints(
        self, tenant_id: str, limit: int, offset: int, run_id: str | None = None, project_id: str | None = None
    ) -> Page[CheckpointRow]: ...
    async def delete_checkpoint(self, tenant_id: str, run_id: str, kind: CheckpointKind, name: str) -> CheckpointRow:
        """Remove the row, expired or not, and return it."""
        ...

    async def copy_checkpoint(
        self, copy: CheckpointRow, run: RunRow, session: SessionRow | None, max_stored: Bound = UNBOUNDED
    ) -> CheckpointRow:
        """Insert a checkpoint that shares the files under `copy.key`, its run and, if given, its session.

        Repeated (the session's idempotency key, or the run's session and number) it returns the first copy. Raises
        NotFound when no checkpoint has these files any more, InvalidRequest when the repetition asks for another
        source, or the run is taken by another kind of run, QuotaReached when it does not fit into `max_stored`.
        """
        ...

    async def update_checkpoint(
        self,
        tenant_id: str,
        run_id: str,
        kind: CheckpointKind,
        name: str,
        *,
        is_public: bool | None = None,
        expires_at: float | Literal["never"] | None = None,
    ) -> CheckpointRow:
        """Change what is not None; "never" removes the expiry."""
        ...

    # -- shares
    async def create_share(self, share: ShareRow, by: Actor) -> ShareRow:
        """Raises NotFound unless the checkpoint is its tenant's own."""
        ...

    async def list_shares(self, tenant_id: str, project_id: str | None = None) -> tuple[ShareRow, ...]:
        """Newest first, also those that are over."""
        ...

    async def revoke_share(self, tenant_id: str, share_id: str, now: float, by: Actor) -> ShareRow:
        """The first revocation counts, at once and in all processes."""
        ...

    async def shared_checkpoint(self, token_hash: str, run_id: str, kind: CheckpointKind, name: str) -> CheckpointRow:
        """What the holder of a token may read; raises Unauthorized when the share is over, NotFound."""
        ...


class Store(TenantStore, Protocol):
    """What schedulers, sweeps and the operator's command line do besides, over all tenants; the gateway does not."""

    @property
    def ledger(self) -> Ledger: ...
    @property
    def identities(self) -> Identities: ...
    @property
    def quotas(self) -> Quotas: ...
    async def close(self) -> None: ...
    async def sessions_silent_since(self, before: float) -> tuple[SessionRow, ...]:
        """Active sessions of all tenants whose last heartbeat is older than `before`."""
        ...

    # -- runs
    async def live_runs(self) -> tuple[RunRow, ...]:
        """Runs of all tenants that are not closed."""
        ...

    async def close_run(self, run_id: str, kept: CheckpointRow | None = None) -> None:
        """The run takes no more requests; `kept`, its last state, becomes a checkpoint if the run was open."""
        ...

    async def record_snapshot(self, run_id: str, seq_id: int, key: str, size_bytes: int = 0) -> None:
        """Point the run at a newer snapshot; requests it covers no longer need their payloads."""
        ...

    # -- requests
    def new_requests(self) -> AsyncIterator[Sequence[RequestRow]]:
        """First all unfinished requests (in order of position; an empty group if there are none), then
        each group as it commits, with the requests that arrived already failed.
        """
        ...

    async def finish(self, finished: Sequence[FinishedRequest]) -> None:
        """Record how requests ended; a request that is already finished stays as it was."""
        ...

    async def run_log(self, run_id: str, after_seq_id: int) -> tuple[RequestRow, ...]:
        """Requests of a run with a larger seq_id that changed it, in order: what a replay runs (see `changes_run`).

        Kinds that change no state (forward, saves) are left out, and what failed, but for the optim_steps that
        failed on our side.
        """
        ...

    async def run_progress(self, run_id: str) -> tuple[RunRow, int, frozenset[int]]:
        """The run (of any tenant), the smallest seq_id that has not finished, and larger ones that have."""
        ...

    async def prune(self, finished_before: float) -> int:
        """Free payloads and results that nobody can ask for any more; returns freed bytes.

        A result goes when its request finished before the bound; a payload goes when its request is
        finished and, for training requests, covered by its run's snapshot (or the run is closed).
        """
        ...

    # -- files
    async def delete_expired_checkpoints(self, now: float) -> tuple[CheckpointRow, ...]:
        """Remove the rows of all tenants that have expired, longest ago first, at most a thousand; returns them."""
        ...

    async def objects_in_use(self, keys: Sequence[str]) -> frozenset[str]:
        """Those of the object keys that a checkpoint or a sampler has its files under."""
        ...

    async def doomed_objects(self, key: str | None = None) -> tuple[str, ...]:
        """Object keys that lost their last checkpoint (`key` alone, if it is one): their files must be deleted.

        A key gets here in the same commit that deletes, replaces or refuses its last checkpoint. It is not told while
        a request of an open run that no snapshot of the run covers has it as `object_key`.
        """
        ...

    async def forget_doomed_object(self, key: str) -> None:
        """The files under the key are deleted."""
        ...
