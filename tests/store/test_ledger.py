"""The ledger's contract, for both stores."""

from dataclasses import replace
from typing import Any

import pytest

from openrl.errors import NotFound
from openrl.store.base import ApiKeyRow, FinishedRequest, Store
from openrl.store.identities import OPERATOR
from openrl.store.ledger import HOUR_S, RequestLoad, SessionLoad, SessionQuery, StatusQuery, UsageRow
from tests.store.conftest import NOW
from tests.store.rows_for_tests import ALICE, BOB, checkpoint, done, request, run, sample, sampler, session


async def saved(store: Store, name: str, seq_id: int, run_id: str = "r1", **fields: Any) -> None:
    await store.enqueue(request(run_id, seq_id, kind="save_weights"), b"")
    row = checkpoint(name, run_id=run_id, **fields)
    await store.finish([done(f"alice-{run_id}-{seq_id}", checkpoint=row, finished_at=row.created_at)])


async def new_run(store: Store, run_id: str = "r1", session_id: str = "s1") -> None:
    await store.create_run(run(run_id, session_id=session_id), request(run_id, 0, session_id=session_id), b"")
    await store.finish([done(f"alice-{run_id}-0")])


async def events(store: Store, tenant_id: str = ALICE) -> list[str]:
    return [entry.event for entry in await store.ledger.audit_log(tenant_id, None, 0.0, 1e6)]


async def test_projects_come_with_the_sessions_that_name_them(store: Store):
    await store.create_session(session("s1"))
    await store.create_session(session("s2", project_id="p", created_at=2.0))
    await store.create_session(session("s3", project_id="p", created_at=3.0))
    await new_run(store, session_id="s2")
    await saved(store, "a", 1, size_bytes=7)
    await saved(store, "over", 2, expires_at=NOW)
    first, second = await store.ledger.list_projects(ALICE)
    assert (first.project_id, first.num_sessions, first.num_runs, first.checkpoint_bytes) == ("default", 1, 0, 0)
    assert (second.project_id, second.created_at, second.num_sessions, second.num_runs) == ("p", 2.0, 2, 1)
    assert (second.num_checkpoints, second.checkpoint_bytes) == (1, 7)
    assert await store.ledger.list_projects(BOB) == ()
    assert (await store.list_runs(ALICE, 10, 0, "p")).total_count == 1
    assert (await store.list_runs(ALICE, 10, 0, "default")).items == ()


async def test_a_session_moves_and_the_log_says_so(store: Store):
    await store.create_session(session("s1"))
    with pytest.raises(NotFound):
        await store.ledger.assign_project(BOB, "s1", "p", 5.0)
    for _ in range(2):  # the second changes nothing
        await store.ledger.assign_project(ALICE, "s1", "p", 5.0)
    assert (await store.get_session(ALICE, "s1")).project_id == "p"
    moves = await store.ledger.audit_log(ALICE, "projects", 5.0, 6.0)
    assert [entry.event for entry in moves] == ["project_create", "session_project_set"]
    assert moves[1].details == {"session_id": "s1", "from_project_id": "default", "project_id": "p"}
    assert await events(store, BOB) == []


async def test_searches_find_what_matches(store: Store):
    await store.create_session(session("s1", display_name="Big Run", user_metadata={"n": 1, 'q"': "x"}))
    await store.create_session(session("s2", created_at=2.0, project_id="p"))
    await store.end_session(ALICE, "s2", "finished", "errored: why")
    await store.create_session(session("s3", created_at=3.0))
    await store.end_session(ALICE, "s3", "expired", "silent")

    async def found(**fields: object) -> list[str]:
        query = replace(SessionQuery(ALICE, 10), **fields)  # pyright: ignore[reportArgumentType]
        return [each.session_id for each in await store.ledger.search_sessions(query)]

    assert await found() == ["s3", "s2", "s1"]
    assert await found(limit=2) == ["s3", "s2"]
    assert await found(after=(2.4, "s2")) == ["s1"]  # the row's time counts, not the cursor's
    assert await found(after=(2.4, "unknown")) == ["s2", "s1"]
    assert await found(tenant_id=BOB) == []
    assert await found(session_id="s2") == ["s2"]
    assert await found(session_id="s2", display_words=("run", "BIG")) == ["s2", "s1"]
    assert await found(user_metadata=(("n", "1"), ('q"', "x"))) == ["s1"]
    assert await found(project_ids=("p",)) == ["s2"]
    assert await found(project_ids=()) == []
    assert await found(statuses=(StatusQuery("active"),)) == ["s1"]
    assert await found(statuses=(StatusQuery("finished", ("errored",)),)) == ["s2"]
    assert await found(statuses=(StatusQuery("finished", ("success",)), StatusQuery("failed"))) == []
    with pytest.raises(NotFound):
        await found(project_ids=("p", "unheard-of"))
    with pytest.raises(NotFound):
        await found(project_ids=("p",), tenant_id=BOB)


async def test_a_search_counts_checkpoints_that_are_kept(store: Store):
    await store.create_session(session("s1"))
    await new_run(store)
    await saved(store, "a", 1)
    await saved(store, "b", 2, expires_at=NOW)
    found = await store.ledger.search_sessions(SessionQuery(ALICE, 10))
    assert [(each.num_checkpoints, each.checkpoint_bytes) for each in found] == [(1, 5)]


async def test_usage_counts_what_succeeded_by_hour(store: Store):
    await store.create_session(session("s1", user_metadata={"k": "v"}))
    rows = [request("r", n, session_id="s1", base_model="tiny") for n in range(1, 5)]
    rows += [sample("s", n, session_id="s1", base_model="tiny") for n in (1, 2)]
    for row in rows:
        await store.enqueue(row, b"")
    await store.finish(
        [
            done("alice-r-1", num_tokens=10, finished_at=1.0),
            done("alice-r-2", num_tokens=5, finished_at=2.0),
            FinishedRequest("alice-r-3", "failed", 2.0, error="no", num_tokens=100),
            done("s-1", num_tokens=9, num_sampled_tokens=4, num_cached_tokens=3, finished_at=2.0),
        ]
    )
    await store.finish([done("alice-r-4", num_tokens=1, finished_at=1.0 + HOUR_S), done("alice-r-1", num_tokens=99)])
    await store.finish([done("s-2", num_tokens=1, num_sampled_tokens=1, finished_at=3.0)])
    report = await store.ledger.usage(ALICE, 0, 2)
    assert report.rows == (
        UsageRow(0, "s1", "tiny", "training", 15),
        UsageRow(0, "s1", "tiny", "prefill", 5),
        UsageRow(0, "s1", "tiny", "sample", 5),
        UsageRow(0, "s1", "tiny", "cached_prefill", 3),
        UsageRow(1, "s1", "tiny", "training", 1),
    )
    assert report.sessions == {"s1": {"k": "v"}}
    assert (await store.ledger.usage(ALICE, 1, 2)).rows == report.rows[-1:]
    assert (await store.ledger.usage(BOB, 0, 2)).rows == ()
    await store.ledger.assign_project(ALICE, "s1", "p", 5.0)
    assert {row.project_id for row in (await store.ledger.usage(ALICE, 0, 2)).rows} == {"p"}


async def test_storage_is_counted_until_a_checkpoint_goes(store: Store):
    await store.create_session(session("s1"))
    await new_run(store)
    await saved(store, "kept", 1, created_at=10.0)
    await saved(store, "over", 2, created_at=20.0, expires_at=500.0)
    await saved(store, "gone", 3, created_at=30.0)
    await store.delete_checkpoint(ALICE, "r1", "weights", "gone")
    await saved(store, "again", 4, created_at=40.0)
    await saved(store, "again", 5, created_at=50.0, size_bytes=6)
    spans = await store.ledger.storage(ALICE, 0.0, 1e9)
    assert sorted((span.since, span.until, span.size_bytes) for span in spans if span.until is not None) == [
        (20.0, 500.0, 5), (30.0, NOW, 5), (40.0, 50.0, 5),
    ]  # fmt: skip
    assert [(span.since, span.size_bytes) for span in spans if span.until is None] == [(10.0, 5), (50.0, 6)]
    assert {(span.project_id, span.base_model) for span in spans} == {("default", "tiny")}
    assert len(await store.ledger.storage(ALICE, 501.0, 1e9)) == 3
    assert len(await store.ledger.storage(ALICE, 0.0, 25.0)) == 2
    assert await store.ledger.storage(BOB, 0.0, 1e9) == ()


async def test_the_audit_log_tells_of_checkpoints_and_keys(store: Store):
    await new_run(store)
    await saved(store, "a", 1, created_at=10.0)
    await store.update_checkpoint(ALICE, "r1", "weights", "a", is_public=True)
    await store.update_checkpoint(ALICE, "r1", "weights", "a", is_public=False, expires_at=2000.0)
    await store.delete_checkpoint(ALICE, "r1", "weights", "a")
    with pytest.raises(NotFound):
        await store.delete_checkpoint(ALICE, "r1", "weights", "a")
    await store.identities.add_api_key(ApiKeyRow("f" * 64, ALICE, "laptop", 7.0), OPERATOR)
    await store.identities.add_api_key(ApiKeyRow("f" * 64, ALICE, "laptop", 8.0), OPERATOR)
    for _ in range(2):
        await store.identities.revoke_api_key(ALICE, "f" * 12, 9.0, OPERATOR)
    assert await events(store) == [
        "api_key_create", "api_key_revoke", "checkpoint_save", "checkpoint_publish", "checkpoint_unpublish",
        "checkpoint_ttl_set", "checkpoint_delete",
    ]  # fmt: skip
    keys = await store.ledger.audit_log(ALICE, "organizations", 0.0, 8.0)
    assert [entry.details for entry in keys] == [
        {"key_hash": "f" * 12, "label": "laptop", "role": "admin", "actor": "operator"}
    ]
    (saving,) = await store.ledger.audit_log(ALICE, "checkpoints", 0.0, 11.0)
    assert saving.details["tinker_path"] == "tinker://r1/weights/a"


async def test_a_loss_is_in_use_while_a_session_that_used_it_is_active_or_has_an_open_run(store: Store):
    note = store.ledger.note_loss_use
    await store.create_session(session("s1"))
    await store.create_session(session("s2", BOB))
    await new_run(store)
    await note("losses/alice/x", ALICE, "s1", 5.0)
    await note("losses/bob/x", BOB, "s2", 5.0)
    await note("losses/bob/x", BOB, "s0", 9.0)
    await note("losses/bob/y", BOB, "s1", 5.0)  # another tenant's session
    assert await store.ledger.losses_in_use(6.0) == {"losses/alice/x", "losses/bob/x"}
    await store.end_session(ALICE, "s1", "finished", "")
    await store.end_session(BOB, "s2", "expired", "")
    assert await store.ledger.losses_in_use(6.0) == {"losses/alice/x", "losses/bob/x"}
    await store.close_run("r1")
    assert await store.ledger.losses_in_use(6.0) == {"losses/bob/x"}
    assert await store.ledger.losses_in_use(10.0) == frozenset()
    await note("losses/alice/x", ALICE, "s1", 11.0)
    assert await store.ledger.losses_in_use(10.0) == {"losses/alice/x"}
    await store.ledger.forget_losses(["losses/alice/x", "losses/bob/y"])
    assert await store.ledger.losses_in_use(0.0) == {"losses/bob/x"}


async def test_a_trace_holds_the_newest_requests_of_one_session(store: Store):
    await store.create_session(session("s1"))
    await new_run(store)
    await store.create_sampler(sampler("s1:sample:0"))
    await store.enqueue(request("r1", 1, session_id="s1"), b"")
    await store.enqueue(sample("s1:sample:0", 5, session_id="s1", created_at=9.0), b"")
    await store.enqueue(request("other", 1), b"")
    await store.finish([done("alice-r1-1", finished_at=10.0, wall_s=2.0, busy_s=1.0, num_tokens=7)])
    assert await store.ledger.trace_version(ALICE, "s1") == (3, 2)
    trace = await store.ledger.trace(ALICE, "s1", 10)
    assert [(each.kind, each.seq_id) for each in trace] == [("create_model", 0), ("forward_backward", 1), ("sample", 5)]
    assert (trace[1].wall_s, trace[1].busy_s, trace[1].num_tokens, trace[1].state) == (2.0, 1.0, 7, "done")
    assert trace[2].finished_at is None
    assert await store.ledger.trace(ALICE, "s1", 2) == trace[1:]
    assert await store.ledger.trace(BOB, "s1", 2) == ()


async def test_the_load_is_of_all_tenants_and_of_its_time_only(store: Store):
    await store.create_session(session("s1", created_at=100.0, last_heartbeat_at=300.0))
    await store.create_session(session("s2", BOB, created_at=50.0, last_heartbeat_at=150.0))
    await store.create_session(session("gone", created_at=1.0, last_heartbeat_at=90.0))
    await store.create_session(session("later", created_at=900.0))
    for name, tenant in (("gone", ALICE), ("s2", BOB)):
        await store.end_session(tenant, name, "finished", "stop")
    first = request("r1", 0, session_id="s1", created_at=100.0, base_model="tiny")
    await store.create_run(run("r1", session_id="s1"), first, b"")
    for seq_id, at in ((1, 200.0), (2, 500.0)):
        row = request("r1", seq_id, session_id="s1", created_at=at, base_model="tiny", num_tokens=70)
        await store.enqueue(row, b"")
    await store.finish([done("alice-r1-1", finished_at=201.5, num_tokens=64, busy_s=0.5)])
    bobs, alices = await store.ledger.load(100.0, 500.0)
    assert bobs == SessionLoad("s2", BOB, 50.0, 150.0, ())
    assert (alices.session_id, alices.tenant_id, alices.created_at, alices.ended_at) == ("s1", ALICE, 100.0, None)
    assert [each.kind for each in alices.requests] == ["create_model", "forward_backward"]
    assert alices.requests[1] == RequestLoad("forward_backward", "tiny", "r1", 200.0, 201.5, 70, 64, 0.5)
