"""The gate: never over a limit by more than one request, nobody starves, nobody waits for another's pause."""

import math
from collections import defaultdict
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from openrl.rpc.messages import Outcome
from openrl.scheduler.quotas import QuotaGate, pause_key
from openrl.store.base import RequestRow
from openrl.store.quotas import DeviceUse, Limits, QuotaRow

NOON = 1_800_014_400.0  # 2027-01-15, noon of UTC
DAY = 86400.0


def sample(name: str, tenant_id: str = "t0", project: str = "p", num_tokens: int = 10, position: int = 0) -> RequestRow:
    row = RequestRow(name, tenant_id, f"{tenant_id}/{project}", "sample", f"sampler:x:{name}", 0, 0.0)
    return replace(row, num_tokens=num_tokens, position=position)


def gate_with(*rows: tuple[str, str, Limits], now: float = NOON) -> QuotaGate:
    gate = QuotaGate()
    gate.begin(now, now)
    for tenant_id in ("t0", "t1"):
        for project in ("p", "q"):
            gate.note_project(f"{tenant_id}/{project}", project)
    gate.set_quotas([QuotaRow(*row, 0.0) for row in rows])
    return gate


def done(name: str, num_tokens: int = 10, busy_s: float = 0.0) -> Outcome:
    return Outcome(name, "r", num_tokens=num_tokens, busy_s=busy_s)


def test_without_quotas_everything_passes():
    gate = gate_with()
    assert all(gate.ask(sample(str(n), num_tokens=10**9)) for n in range(100))
    assert gate.wakes_at() == math.inf
    assert gate.pauses() == {}


def test_a_rate_is_kept_after_the_burst_and_requests_pass_in_order():
    gate = gate_with(("t0", "", Limits(tokens_per_s=10, burst_tokens=20)))
    rows = [sample(str(n), position=n) for n in range(6)]
    assert [gate.ask(row) for row in rows] == [True, True, True, False, False, False]
    assert "tokens_per_s of this tenant: 10 of 10 tokens a second" in gate.pauses()["t0"].reason
    assert gate.wakes_at() == NOON + 1
    for later, passed in ((0.5, []), (1.0, ["3"]), (1.9, []), (2.0, ["4"]), (9.0, ["5"])):
        gate.begin(NOON + later, NOON + later)
        assert gate.take_news() == passed
    assert gate.wakes_at() == math.inf


def test_tokens_that_were_not_used_come_back():
    gate = gate_with(("t0", "", Limits(tokens_per_s=1, burst_tokens=10)))
    first = sample("0", num_tokens=100)
    assert gate.ask(first)
    assert not gate.ask(sample("1"))
    gate.end(first, done("0", num_tokens=10))
    assert gate.take_news() == ["1"]


def test_requests_at_once_are_bounded_and_a_lost_worker_gives_the_place_back():
    gate = gate_with(("t0", "", Limits(running_requests=2)))
    rows = [sample(str(n), position=n) for n in range(4)]
    assert [gate.ask(row) for row in rows] == [True, True, False, False]
    assert "2 of 2 run; goes on when one of them ends" in gate.pauses()["t0"].reason
    gate.end(rows[1], done("1"))
    assert gate.take_news() == ["2"]
    gate.revoke(rows[0])
    assert gate.take_news() == ["0"]  # it was there before "3"
    gate.end(rows[3], Outcome("3", error="cancelled"))
    gate.end(rows[0], done("0"))
    gate.end(rows[2], done("2"))
    assert gate.take_news() == []


def test_device_time_pauses_until_the_day_or_month_is_over_or_the_quota_is_raised():
    gate = gate_with(("t0", "", Limits(gpu_seconds_day=2, gpu_seconds_month=3)))
    gate.set_used([DeviceUse("t0", "q", 2_000_000)], [DeviceUse("t0", "q", 1_000_000)])
    gate.end(sample("0"), done("0", busy_s=0.5))
    assert gate.take_used_up() == []
    gate.end(replace(sample("0"), kind="optim_step"), done("0", busy_s=0.5))
    assert gate.take_used_up() == ["t0"]
    assert not gate.ask(sample("1"))
    assert gate.ask(replace(sample("1"), kind="save_weights"))
    reason = gate.pauses()["t0"].reason
    assert reason.startswith("quota gpu_seconds_month of this tenant: 3.0 of 3.0 GPU-seconds are used")
    assert "goes on at 2027-02-01T00:00:00Z or when the quota is raised" in reason
    gate.set_quotas([QuotaRow("t0", "", Limits(gpu_seconds_day=2, gpu_seconds_month=4), 0.0)])
    assert gate.take_news() == []
    assert "gpu_seconds_day" in gate.pauses()["t0"].reason
    assert gate.wakes_at() == NOON + DAY / 2
    gate.begin(NOON + DAY / 2, NOON + DAY / 2)
    assert gate.take_news() == ["1"]
    gate.end(sample("1"), done("1", busy_s=1.0))  # the month's
    assert not gate.ask(sample("2"))
    gate.begin(NOON + 17 * DAY, NOON + 17 * DAY)
    assert gate.take_news() == ["2"]


def test_days_are_the_calendars_and_waiting_is_measured_by_a_clock_that_never_jumps():
    gate = gate_with(("t0", "", Limits(gpu_seconds_day=1)), ("t1", "", Limits(tokens_per_s=10, burst_tokens=5)))
    gate.begin(NOON + 1, NOON - 9.0)  # the calendar's clock was set back by ten seconds
    gate.end(sample("0"), done("0", busy_s=1.0))
    others = [sample(f"b{n}", "t1", position=n) for n in range(2)]
    assert [gate.ask(sample("1")), *map(gate.ask, others)] == [False, True, False]
    assert gate.wakes_at() == NOON + 1.5
    assert gate.pauses()["t1"].reason.endswith("goes on at 2027-01-15T11:59:52Z")
    assert "goes on at 2027-01-16T00:00:00Z" in gate.pauses()["t0"].reason
    gate.begin(NOON + 1.5, NOON - 8.5)
    assert gate.take_news() == ["b1"]
    assert gate.wakes_at() == NOON + 1 + DAY / 2 + 9
    gate.begin(NOON + 2, NOON + DAY / 2)  # it was set to the next day
    assert gate.take_news() == ["1"]


def test_a_project_that_is_paused_does_not_hold_up_the_others_of_its_tenant():
    gate = gate_with(("t0", "p", Limits(running_requests=1)), ("t0", "", Limits(running_requests=3)))
    asked = [gate.ask(sample(str(n), project="pq"[n % 2], position=n)) for n in range(6)]
    assert asked == [True, True, False, True, False, False]
    assert list(gate.pauses()) == ["t0"]
    gate.end(sample("1", project="q"), done("1"))
    assert gate.take_news() == ["5"]  # "2" and "4" are of the project
    gate.end(sample("3", project="q"), done("3"))
    assert gate.take_news() == []
    assert list(gate.pauses()) == [pause_key("t0", "p")]
    gate.end(sample("0"), done("0"))
    assert gate.take_news() == ["2"]


def test_a_revoked_request_of_a_tenant_without_device_time_waits():
    gate = gate_with(("t0", "", Limits(gpu_seconds_month=1)))
    rows = [sample(str(n), position=n) for n in range(3)]
    assert all(gate.ask(row) for row in rows)
    gate.end(rows[0], done("0", busy_s=2.0))
    assert gate.take_used_up() == ["t0"]
    gate.revoke(rows[1])
    assert gate.take_news() == []
    gate.set_quotas([])
    assert gate.take_news() == ["1"]


@st.composite
def traffic(draw: st.DrawFn) -> list[tuple[float, str, str, int, float]]:
    """Arrivals: seconds since the one before, tenant, project, tokens, how long each computes."""
    arrival = st.tuples(
        st.sampled_from([0.0, 0.0, 0.1, 1.0, 5.0]),
        st.sampled_from(["t0", "t1"]),
        st.sampled_from(["p", "q"]),
        st.integers(1, 60),
        st.sampled_from([0.0, 0.3, 2.0]),
    )
    return draw(st.lists(arrival, min_size=1, max_size=60))


LIMITS = st.builds(
    Limits,
    tokens_per_s=st.one_of(st.none(), st.floats(1, 50)),
    burst_tokens=st.one_of(st.none(), st.floats(1, 100)),
    running_requests=st.one_of(st.none(), st.integers(1, 4)),
)


@given(arrivals=traffic(), tenant=LIMITS, project=LIMITS)
@settings(max_examples=200, deadline=None)
def test_limits_hold_nobody_starves_and_an_unlimited_tenant_never_waits(
    arrivals: list[tuple[float, str, str, int, float]], tenant: Limits, project: Limits
):
    gate = gate_with(("t0", "", tenant), ("t0", "p", project))
    rows: dict[str, RequestRow] = {}
    compute_s: dict[str, float] = {}
    started: list[tuple[float, str]] = []
    running: dict[str, float] = {}  # and when it ends
    now = NOON

    def start(names: list[str]) -> None:
        for name in names:
            started.append((now, name))
            running[name] = now + compute_s[name]

    def advance(until: float) -> None:
        nonlocal now
        while (at := min([*running.values(), gate.wakes_at()], default=math.inf)) <= until:
            now = max(now, at) + 1e-6
            gate.begin(now, now)
            for name in [name for name, end in running.items() if end <= now]:
                del running[name]
                gate.end(rows[name], done(name, rows[name].num_tokens))
            start(gate.take_news())
        now = max(now, until)

    for n, (wait_s, tenant_id, place, num_tokens, seconds) in enumerate(arrivals):
        advance(now + wait_s)
        name = str(n)
        rows[name], compute_s[name] = sample(name, tenant_id, place, num_tokens, n), seconds
        gate.begin(now, now)
        if gate.ask(rows[name]):
            start([name])
        else:
            assert tenant_id == "t0"  # nobody waits for another tenant's pause
        start(gate.take_news())
    advance(now + 1e6)
    assert len(started) == len(arrivals)  # nobody starves
    for limits, owned in (
        (tenant, [row for row in rows.values() if row.tenant_id == "t0"]),
        (project, [row for row in rows.values() if row.session_id == "t0/p"]),
    ):
        check(limits, {row.request_id: row for row in owned}, started, compute_s)
    order: defaultdict[str, list[int]] = defaultdict(list)
    for _, name in started:
        order[rows[name].session_id].append(int(name))
    assert all(numbers == sorted(numbers) for numbers in order.values())  # within a project: as they came


def check(
    limits: Limits, rows: dict[str, RequestRow], started: list[tuple[float, str]], compute_s: dict[str, float]
) -> None:
    own = [(at, rows[name].num_tokens, compute_s[name]) for at, name in started if name in rows]
    largest = max((tokens for _, tokens, _ in own), default=0)
    if limits.tokens_per_s is not None:
        burst = 10 * limits.tokens_per_s if limits.burst_tokens is None else limits.burst_tokens
        for first, (since, _, _) in enumerate(own):
            total = 0
            for at, tokens, _ in own[first:]:
                total += tokens
                assert total <= burst + limits.tokens_per_s * (at - since) + largest + 1e-3
    if limits.running_requests is not None:
        for at, _, _ in own:
            assert sum(s <= at < s + seconds for s, _, seconds in own) <= limits.running_requests
