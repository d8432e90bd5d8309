"""The contract of quotas, for both stores."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openrl.errors import NotFound, QuotaReached
from openrl.store.base import FinishedRequest, Store
from openrl.store.identities import OPERATOR
from openrl.store.ledger import HOUR_S, Spending
from openrl.store.memory import MemoryStore
from openrl.store.quotas import NO_LIMITS, Bound, DeviceUse, Holding, Limits, QuotaRow
from tests.store.conftest import NOW
from tests.store.rows_for_tests import ALICE, BOB, checkpoint, done, request, run, sample, sampler, session


async def new_run(store: Store, run_id: str, session_id: str, bound: Bound | None = None, **fields: Any) -> None:
    row = run(run_id, session_id=session_id, **fields)
    first = request(run_id, 0, session_id=session_id)
    await store.create_run(row, first, b"", bound or Bound())
    await store.finish([done(first.request_id)])


async def test_what_was_set_is_found_and_audited_until_it_is_cleared(store: Store):
    mine = QuotaRow(ALICE, "", Limits(live_runs=3, tokens_per_s=math.inf), 5.0, weight=2.0)
    project = QuotaRow(ALICE, "p", Limits(stored_bytes=1e15), 6.0)
    for row in (project, QuotaRow(BOB, "", NO_LIMITS, 6.0), replace(mine, weight=1.0), mine):
        await store.quotas.put_quota(row, OPERATOR)
    assert await store.quotas.quotas_of(ALICE) == (mine, project)
    assert [row.tenant_id for row in await store.quotas.list_quotas()] == [ALICE, ALICE, BOB]
    await store.quotas.clear_quota(ALICE, "p", 7.0, OPERATOR)
    with pytest.raises(NotFound):
        await store.quotas.clear_quota(ALICE, "p", 7.0, OPERATOR)
    assert await store.quotas.quotas_of(ALICE) == (mine,)
    log = await store.ledger.audit_log(ALICE, "organizations", 0.0, 10.0)
    assert [entry.event for entry in log] == ["quota_set", "quota_set", "quota_set", "quota_clear"]
    assert log[1].details == {"actor": "operator", "live_runs": 3, "tokens_per_s": "unlimited", "weight": 2.0}
    assert log[2].details == {"actor": "operator", "project_id": "p", "stored_bytes": 1e15}


def test_the_tighter_value_is_the_own_one_and_the_default_fills_in():
    limits = Limits(live_runs=2, tokens_per_s=math.inf).over(Limits(live_runs=9, tokens_per_s=5.0, stored_bytes=7))
    assert (limits.live_runs, limits.tokens_per_s, limits.stored_bytes) == (2, math.inf, 7)
    assert limits.bound("requests_per_s") == math.inf


async def test_what_is_in_use_is_counted_from_the_rows(store: Store):
    await store.create_session(session("s1", project_id="p"))
    await store.create_session(session("s2"))
    await new_run(store, "r1", "s1")
    await new_run(store, "r2", "s1", model_seq_id=1)
    await new_run(store, "r3", "s2")
    await store.record_snapshot("r1", 0, "snapshots/r1/0", 100)
    await store.record_snapshot("r2", 0, "snapshots/r2/0", 1000)
    await store.close_run("r2")
    for n, more in enumerate((checkpoint("a"), checkpoint("over", expires_at=NOW)), start=1):
        await store.enqueue(request("r1", n, kind="save_weights", session_id="s1"), b"")
        await store.finish([done(f"alice-r1-{n}", checkpoint=more)])
    await store.create_sampler(sampler("s2:sample:0", session_id="s2", is_ephemeral=True, size_bytes=30))
    await store.enqueue(request("r1", 3, session_id="s1"), b"")
    await store.enqueue(sample("s2:sample:0", 1, session_id="s2"), b"")
    assert await store.quotas.holdings(ALICE) == (Holding("default", 30, 1), Holding("p", 105, 1))
    assert await store.quotas.num_queued(ALICE) == {"p": 1, "default": 1}
    assert await store.quotas.has_later(ALICE, "r1", 2)
    assert not await store.quotas.has_later(ALICE, "r1", 3)
    await store.end_session(ALICE, "s2", "finished", "")  # its unnamed saves go
    assert await store.quotas.holdings(ALICE) == (Holding("default", 0, 1), Holding("p", 105, 1))
    assert (await store.quotas.holdings(BOB), await store.quotas.num_queued(BOB)) == ((), {})


async def test_no_run_is_made_over_the_bounds_but_a_retry_is_answered(store: Store):
    await store.create_session(session("s1", project_id="p"))
    await store.create_session(session("s2"))
    await new_run(store, "r1", "s1", Bound(tenant=2, project=1))
    await new_run(store, "r1", "s1", Bound(tenant=2, project=1))
    with pytest.raises(QuotaReached, match=r"live_runs of project 'p' is reached: 1 of 1 in use"):
        await new_run(store, "r2", "s1", Bound(tenant=2, project=1), model_seq_id=1)
    await new_run(store, "r3", "s2", Bound(tenant=2, project=1))
    with pytest.raises(QuotaReached, match="live_runs of this tenant is reached: 2 of 2"):
        await new_run(store, "r4", "s2", Bound(tenant=2), model_seq_id=1)
    with pytest.raises(NotFound):
        await store.get_run(ALICE, "r4")
    await store.close_run("r3")
    await new_run(store, "r4", "s2", Bound(tenant=2), model_seq_id=1)


async def test_saves_that_do_not_fit_fail_each_counted_after_those_before_it(store: Store):
    await store.create_session(session("s1", project_id="p"))
    await new_run(store, "r1", "s1")
    for n in range(1, 6):
        await store.enqueue(request("r1", n, kind="save_weights", session_id="s1"), b"")
    bound = Bound(tenant=100, project=12)
    ends = [
        done(f"alice-r1-{n}", checkpoint=checkpoint(name, key=f"k{n}"), max_stored=bound)
        for n, name in enumerate(("a", "b", "c"), start=1)
    ]
    unnamed = sampler("s1:sample:0", adapter_key="k4", is_ephemeral=True, size_bytes=5)
    await store.finish([*ends, done("alice-r1-4", sampler=unnamed, max_stored=bound)])
    rows = [await store.get_request(ALICE, f"alice-r1-{n}") for n in range(1, 5)]
    assert [(row.state, row.category) for row in rows[2:]] == [("failed", "user")] * 2
    assert rows[2].error.startswith("quota stored_bytes of project 'p' is reached: 10 of 12 in use, 5 more asked for")
    assert [row.state for row in rows[:2]] == ["done", "done"]
    assert await store.doomed_objects() == ("k3", "k4")
    # One that replaces another needs only what it is larger by.
    larger = checkpoint("a", key="k5", size_bytes=7)
    await store.finish([done("alice-r1-5", checkpoint=larger, max_stored=bound)])
    assert (await store.get_request(ALICE, "alice-r1-5")).state == "done"
    assert await store.quotas.holdings(ALICE) == (Holding("p", 12, 1),)


async def test_device_time_counts_whatever_became_of_the_request_and_outlives_it(store: Store):
    await store.create_session(session("s1", project_id="p", user_id="u"))
    await new_run(store, "r1", "s1")
    for n, kind in enumerate(("forward_backward", "optim_step", "save_weights", "forward_backward"), start=1):
        await store.enqueue(request("r1", n, kind=kind, session_id="s1", base_model="tiny"), b"")
    await store.enqueue(sample("x", 1, session_id="s1", base_model="tiny", source_run_id="r1"), b"")
    await store.enqueue(sample("x", 2, session_id="s1", base_model="tiny"), b"")
    await store.finish(
        [
            done("alice-r1-1", num_tokens=9, busy_s=0.5, finished_at=HOUR_S),
            done("alice-r1-2", busy_s=0.1, finished_at=HOUR_S),
            done("alice-r1-3", busy_s=0.2, checkpoint=checkpoint("a"), finished_at=HOUR_S),
            FinishedRequest("alice-r1-4", "failed", 3 * HOUR_S, num_tokens=9, busy_s=0.000001),
            done("x-1", num_tokens=5, num_sampled_tokens=2, busy_s=0.3, finished_at=HOUR_S),
            done("x-2", num_tokens=5, num_sampled_tokens=2, num_cached_tokens=1, busy_s=0.4, finished_at=2 * HOUR_S),
        ]
    )
    await store.close_run("r1")
    await store.prune(1e9)

    def row(run_id: str, kind: Any, amount: int, busy_us: int) -> Spending:
        return Spending(ALICE, "p", "u", "s1", run_id, "tiny", kind, amount, busy_us)

    assert await store.ledger.spending(ALICE, 1, 9) == (
        row("", "cached_prefill", 1, 0), row("", "prefill", 3, 0), row("", "sample", 2, 400_000),
        row("r1", "checkpoint", 1, 200_000), row("r1", "prefill", 3, 0), row("r1", "sample", 2, 300_000),
        row("r1", "training", 9, 600_001),
    )  # fmt: skip
    assert await store.ledger.spending(None, 3, 9) == (row("r1", "training", 0, 1),)
    assert await store.ledger.spending(BOB, 0, 9) == ()
    assert await store.quotas.device_use(2) == (DeviceUse(ALICE, "p", 400_001),)
    report = await store.ledger.usage(ALICE, 1, 2)
    assert [(each.kind, each.amount, each.busy_us) for each in report.rows] == [
        ("training", 9, 600_000), ("prefill", 3, 0), ("sample", 2, 300_000), ("checkpoint", 1, 200_000),
    ]  # fmt: skip


ENDS = st.lists(
    st.tuples(
        st.sampled_from([ALICE, BOB]),
        st.integers(0, 2),  # session
        st.integers(0, 2),  # run of it; 0: none
        st.integers(1, 50),  # tokens
        st.floats(0, 10, allow_nan=False),
        st.integers(0, 40),  # hour
    ),
    max_size=30,
)


@given(ends=ENDS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_sums_by_run_session_project_and_tenant_agree_exactly(ends: list[tuple[str, int, int, int, float, int]]):
    store = MemoryStore(clock=lambda: NOW)
    for tenant_id in (ALICE, BOB):
        for n in range(3):
            await store.create_session(session(f"{tenant_id}{n}", tenant_id, project_id=f"p{n // 2}"))
    for n, (tenant_id, place, number, tokens, busy_s, hour) in enumerate(ends, start=1):
        session_id = f"{tenant_id}{place}"
        fields: dict[str, Any] = {"session_id": session_id, "request_id": str(n)}
        if number:
            row = request(f"{session_id}:train:{number}", n, tenant_id, **fields)
        else:
            row = sample("x", n, tenant_id, **fields)
        await store.enqueue(row, b"")
        await store.finish([done(str(n), num_tokens=tokens, busy_s=busy_s, finished_at=hour * HOUR_S)])
    spent = await store.ledger.spending(None, 0, 41)
    for amount in ("amount", "busy_us"):
        for tenant_id in (ALICE, BOB):
            own = [each for each in spent if each.tenant_id == tenant_id]
            total = sum(getattr(each, amount) for each in own)
            for name in ("run_id", "session_id", "project_id"):
                groups: dict[str, int] = {}
                for each in own:
                    groups[getattr(each, name)] = groups.get(getattr(each, name), 0) + getattr(each, amount)
                assert sum(groups.values()) == total
            report = await store.ledger.usage(tenant_id, 0, 41)
            assert sum(getattr(row, amount) for row in report.rows) == total
            by_hour = [await store.ledger.spending(tenant_id, hour, hour + 1) for hour in range(41)]
            assert sum(getattr(each, amount) for hour in by_hour for each in hour) == total
    assert sum(each.busy_us for each in spent) == sum(round(busy_s * 1e6) for *_, busy_s, _ in ends)
    assert sum(use.busy_us for use in await store.quotas.device_use(0)) == sum(each.busy_us for each in spent)


async def test_a_copy_counts_and_does_not_come_in_over_the_bound(store: Store):
    await store.create_session(session("s1"))
    await new_run(store, "r1", "s1")
    await store.enqueue(request("r1", 1, kind="save_weights", session_id="s1"), b"")
    await store.finish([done("alice-r1-1", checkpoint=checkpoint("a"))])
    copy, bound = checkpoint("a", run_id="c"), Bound(tenant=9)
    holder = run("c", session_id="s1", model_seq_id=7, is_closed=True, copied_from="tinker://r1/weights/a")
    with pytest.raises(QuotaReached, match="5 of 9 in use, 5 more asked for"):
        await store.copy_checkpoint(copy, holder, None, bound)
    with pytest.raises(NotFound):
        await store.get_run(ALICE, "c")
    for each in (Bound(tenant=10), bound):  # the second is a retry
        assert await store.copy_checkpoint(copy, holder, None, each) == copy
