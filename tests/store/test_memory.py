"""`SqlStore` and `MemoryStore` give the same answers to any sequence of calls."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from openrl.errors import OpenRLError
from openrl.store.base import RequestRow, Store
from openrl.store.identities import OPERATOR, ROLES, ApiKeyRow, Role, ShareRow, SignIn, TenantRow, UserRow
from openrl.store.memory import MemoryStore
from openrl.store.memory_blobs import MemoryBlobs
from openrl.store.sql import create_store
from tests.postgres import PostgresServer
from tests.store.expectations import empty
from tests.store.rows_for_tests import ALICE, BOB, checkpoint, done, request, run, sample, sampler, session

NOW = 50.0
tenants = st.sampled_from((ALICE, BOB))
small = st.integers(0, 3)
times = st.sampled_from((0.0, 40.0, 50.0, 60.0))
kinds = st.sampled_from(("forward_backward", "optim_step", "forward", "save_weights"))


async def answer_of(call: Awaitable[Any]) -> Any:
    """What a call returned, or the kind of its error."""
    try:
        return _without_refs(await call)
    except OpenRLError as error:
        return type(error)


def _without_refs(answer: Any) -> Any:
    """References differ in name between stores that take payloads at different moments: only their presence counts."""
    if isinstance(answer, RequestRow):
        return replace(answer, payload_ref=str(bool(answer.payload_ref)))
    if isinstance(answer, ApiKeyRow):  # uses are noted in the background
        return replace(answer, last_used_at=None)
    if isinstance(answer, tuple):
        return tuple(_without_refs(part) for part in answer)
    return answer


class TwinStores(RuleBasedStateMachine):
    """Every call goes to both stores; answers and errors must be equal."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.twins: tuple[Store, Store] = (
            MemoryStore(clock=lambda: NOW),
            self.runner.run(create_store(url, MemoryBlobs(), clock=lambda: NOW)),
        )

    def teardown(self) -> None:
        try:
            self.list_everything()
        finally:
            for store in self.twins:
                self.runner.run(store.close())
            self.runner.close()

    def both(self, method: str, *arguments: Any, **options: Any) -> Any:
        calls = (attrgetter(method)(store)(*arguments, **options) for store in self.twins)
        slow, fast = (self.runner.run(answer_of(call)) for call in calls)
        assert slow == fast
        return slow

    @rule(tenant=tenants, key=small, now=times)
    def keys(self, tenant: str, key: int, now: float) -> None:
        self.both("identities.create_tenant", TenantRow(tenant, f"{key}", now), OPERATOR)
        self.both("identities.add_api_key", ApiKeyRow(f"h{key}", tenant, "", now, role="member"), OPERATOR)
        self.both("identities.identity_of_key", f"h{key}", now)

    @rule(tenant=tenants, n=small, role=st.sampled_from(ROLES), key=small, now=times)
    def users(self, tenant: str, n: int, role: Role, key: int, now: float) -> None:
        self.both("identities.add_user", UserRow(f"{tenant}{n}", tenant, role, now, email=f"{n}@x"), OPERATOR)
        key_row = ApiKeyRow(f"u{key}", tenant, "", now, role="reader", user_id=f"{tenant}{n}", expires_at=now + 5.0)
        self.both("identities.add_api_key", key_row, OPERATOR)
        self.both("identities.sign_in", SignIn(f"{key}", f"s{n}", role, f"{n}@x", n % 2 == 0), now, may_create=n == 1)

    @rule(tenant=tenants, n=small, role=st.sampled_from(ROLES), is_disabled=st.booleans(), key=small, now=times)
    def change_user(self, tenant: str, n: int, role: Role, is_disabled: bool, key: int, now: float) -> None:
        change = {"role": role, "is_disabled": is_disabled}
        self.both("identities.update_user", tenant, f"{tenant}{n}", now, OPERATOR, **change)
        self.both("identities.set_tenant_disabled", tenant, n == 0, now, OPERATOR)
        self.both("identities.identity_of_key", f"u{key}", now)
        self.both("identities.identity_of_user", tenant, f"{tenant}{n}")

    @rule(tenant=tenants, key=small, new=small, now=times)
    def rotate(self, tenant: str, key: int, new: int, now: float) -> None:
        if new != key:
            self.both("identities.rotate_api_key", tenant, f"h{key}", f"n{now}-{key}", 5.0, now, OPERATOR)

    @rule(tenant=tenants, n=small, name=st.sampled_from("ab"), now=times)
    def share(self, tenant: str, n: int, name: str, now: float) -> None:
        row = ShareRow(f"t{n}{name}{now}", tenant, f"r{n}", "weights", name, now, NOW + now)
        self.both("create_share", row, OPERATOR)
        self.both("shared_checkpoint", row.token_hash, f"r{n}", "weights", name)
        self.both("list_shares", tenant, "p")
        if n == 0:
            self.both("revoke_share", tenant, row.share_id, now, OPERATOR)

    @rule(tenant=tenants, key=small, now=times)
    def revoke(self, tenant: str, key: int, now: float) -> None:
        self.both("identities.revoke_api_key", tenant, f"h{key}", now, OPERATOR)
        self.both("identities.identity_of_key", f"h{key}", now)

    @rule(tenant=tenants, n=small, key=st.none() | st.sampled_from("xy"), at=times)
    def create_session(self, tenant: str, n: int, key: str | None, at: float) -> None:
        self.both("create_session", session(f"s{n}", tenant, idempotency_key=key, created_at=at))

    @rule(tenant=tenants, n=small, at=times, is_end=st.booleans())
    def touch_session(self, tenant: str, n: int, at: float, is_end: bool) -> None:
        if is_end:
            self.both("end_session", tenant, f"s{n}", "expired", f"at {at}")
        self.both("heartbeat", tenant, f"s{n}", at)

    @rule(tenant=tenants, n=small, number=small, at=times)
    def create_run(self, tenant: str, n: int, number: int, at: float) -> None:
        row = run(f"r{n}", tenant, session_id="s1", model_seq_id=number, created_at=at, last_request_at=at)
        self.both("create_run", row, request(f"r{n}", 0, tenant, request_id=f"r{n}-0"), b"create")

    @rule(n=small, seq_id=small, is_closed=st.booleans())
    def advance_run(self, n: int, seq_id: int, is_closed: bool) -> None:
        self.both("record_snapshot", f"r{n}", seq_id, f"key{seq_id}")
        if is_closed:
            self.both("close_run", f"r{n}")

    @rule(tenant=tenants, n=small, seq_id=st.integers(1, 5), kind=kinds, at=times, read=st.sampled_from(("", "a", "b")))
    def enqueue(self, tenant: str, n: int, seq_id: int, kind: str, at: float, read: str) -> None:
        row = request(f"r{n}", seq_id, tenant, request_id=f"r{n}-{seq_id}", kind=kind, created_at=at)
        row = replace(row, object_key=f"checkpoints/{read}" if read else "")
        self.both("enqueue", row, b"payload")

    @rule(tenant=tenants, n=small, seq_id=st.integers(1, 5))
    def enqueue_failed(self, tenant: str, n: int, seq_id: int) -> None:
        row = request(f"r{n}", seq_id, tenant, request_id=f"r{n}-{seq_id}", state="failed", error="bad")
        self.both("enqueue", replace(row, finished_at=40.0, category="user"), b"")

    @rule(tenant=tenants, n=small, seq_id=small)
    def enqueue_sample(self, tenant: str, n: int, seq_id: int) -> None:
        self.both("enqueue", sample(f"p{n}", seq_id, tenant), b"prompt")

    @rule(tenant=tenants, n=small, number=small)
    def create_sampler(self, tenant: str, n: int, number: int) -> None:
        self.both("create_sampler", sampler(f"p{n}", tenant, sampling_session_seq_id=number))

    @rule(
        ids=st.lists(st.tuples(small, st.integers(0, 5)), max_size=3),
        at=times,
        state=st.sampled_from(("done", "failed", "cancelled")),
        category=st.sampled_from(("user", "server")),
    )
    def finish(self, ids: list[tuple[int, int]], at: float, state: str, category: str) -> None:
        ends = [done(f"r{n}-{seq_id}", finished_at=at, state=state, category=category) for n, seq_id in ids]
        self.both("finish", ends)

    @rule(tenant=tenants, n=small, ids=st.lists(st.tuples(small, small), max_size=3), after=small)
    def finish_samples(self, tenant: str, n: int, ids: list[tuple[int, int]], after: int) -> None:
        self.both("finish", [done(f"p{sampler_id}-{seq_id}") for sampler_id, seq_id in ids])
        self.both("release_results", tenant, f"p{n}", [f"p{n}-{after}"])
        self.both("ended_samples", tenant, f"p{n}", range(1, 3), after, 0.0)
        self.both("join_sampler", tenant, f"p{n}")

    @rule(
        tenant=tenants,
        n=small,
        seq_id=st.integers(0, 5),
        name=st.sampled_from("ab"),
        expires_at=st.none() | times,
        may_replace=st.booleans(),
    )
    def finish_save(
        self, tenant: str, n: int, seq_id: int, name: str, expires_at: float | None, may_replace: bool
    ) -> None:
        saved = checkpoint(name, tenant, run_id=f"r{n}", expires_at=expires_at, created_at=float(seq_id))
        made = sampler(f"p{n}", tenant, sampling_session_seq_id=seq_id)
        self.both("finish", [done(f"r{n}-{seq_id}", checkpoint=saved, sampler=made, may_replace=may_replace)])

    @rule(
        tenant=tenants,
        n=small,
        name=st.sampled_from("ab"),
        is_public=st.none() | st.booleans(),
        expires_at=st.none() | st.just("never") | times,
    )
    def update_checkpoint(self, tenant: str, n: int, name: str, is_public: bool | None, expires_at: Any) -> None:
        place = (tenant, f"r{n}", "weights", name)
        self.both("update_checkpoint", *place, is_public=is_public, expires_at=expires_at)

    @rule(tenant=tenants, n=small, name=st.sampled_from("ab"))
    def delete_checkpoint(self, tenant: str, n: int, name: str) -> None:
        self.both("delete_checkpoint", tenant, f"r{n}", "weights", name)

    @rule(now=times)
    def delete_expired_checkpoints(self, now: float) -> None:
        self.both("delete_expired_checkpoints", now)

    @rule(name=st.sampled_from("ab"))
    def forget_doomed_object(self, name: str) -> None:
        self.both("forget_doomed_object", f"checkpoints/{name}")

    @rule(tenant=tenants, n=small, name=st.sampled_from("abc"), source=small, key=st.none() | st.sampled_from("xy"))
    def copy_checkpoint(self, tenant: str, n: int, name: str, source: int, key: str | None) -> None:
        made = session(f"copy{n}", tenant, idempotency_key=key)
        owner = run(f"copy{n}:train:0", tenant, session_id=made.session_id, is_closed=True, copied_from=f"from{source}")
        copy = checkpoint(name, tenant, run_id=owner.spec.run_id)
        self.both("copy_checkpoint", copy, owner, made)

    @rule(before=times)
    def prune(self, before: float) -> None:
        slow, fast = (self.runner.run(store.prune(before)) for store in self.twins)
        # A group's payloads are written before its rows are tried: those of refused rows are freed too.
        assert fast >= slow

    @rule(tenant=tenants, n=small, seq_id=st.integers(0, 5))
    def ask(self, tenant: str, n: int, seq_id: int) -> None:
        self.both("get_session", tenant, f"s{n}")
        self.both("get_run", tenant, f"r{n}")
        self.both("get_sampler", tenant, f"p{n}")
        self.both("get_request", tenant, f"r{n}-{seq_id}")
        self.both("wait_finished", tenant, f"r{n}-{seq_id}", 0.0)
        self.both("get_checkpoint", tenant, f"r{n}", "weights", "a")
        self.both("runs_of_session", tenant, "s1")
        self.both("samplers_of_session", tenant, "s1")
        self.both("run_progress", f"r{n}")
        self.both("run_log", f"r{n}", seq_id - 1)

    @rule()
    def list_everything(self) -> None:
        for tenant in (ALICE, BOB):
            for listing in ("list_sessions", "list_runs", "list_checkpoints"):
                self.both(listing, tenant, 2, 1)
            for listing in ("list_shares", "identities.list_users", "identities.list_api_keys"):
                self.both(listing, tenant)
            self.both("ledger.audit_log", tenant, "organizations", 0.0, 100.0)
        for call in ("identities.list_tenants", "live_runs"):
            self.both(call)
        self.both("doomed_objects")
        self.both("sessions_silent_since", 45.0)
        backlogs = [self.runner.run(answer_of(anext(store.new_requests()))) for store in self.twins]
        assert backlogs[0] == backlogs[1]


EXAMPLES = settings(
    max_examples=15, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def compare_on(new_database: Callable[[], str]) -> None:
    class OnDatabase(TwinStores):
        def __init__(self) -> None:
            super().__init__(new_database())

    run_state_machine_as_test(OnDatabase, settings=EXAMPLES)


def test_a_store_on_sqlite_answers_as_its_twin(tmp_path: Path):
    numbers = itertools.count()
    compare_on(lambda: f"sqlite:///{tmp_path}/store{next(numbers)}.db")


def test_a_store_on_postgresql_answers_as_its_twin(postgres: PostgresServer, database_url: str):
    def emptied() -> str:
        empty(postgres, database_url)
        return database_url

    compare_on(emptied)
