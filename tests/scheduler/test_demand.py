from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from openrl.config import Config, ModelConfig, PoolConfig, WorkerRole
from openrl.scheduler.demand import LEAST_BUSY_S, PoolSignal, Served, measured_rates, pool_signals
from openrl.store.cluster import Demand, HourOfWork, Pause, SchedulerStatus, Side, WorkerStatus

NOW = 1000.0
SIDES: tuple[Side, ...] = ("train", "sample")


def config(**pools: PoolConfig) -> Config:
    return Config(models=(ModelConfig(name="a", path=Path("a")),), pools=pools)


def worker(pool: str, role: WorkerRole = "both", models: tuple[str, ...] = ("a",)) -> WorkerStatus:
    return WorkerStatus(f"{pool}-0", pool, role, models, "working", 0, 0)


def status(*workers: WorkerStatus) -> SchedulerStatus:
    return SchedulerStatus(num_workers=len(workers), workers=workers)


def wanted(
    pools: Config, demands: list[Demand], now: SchedulerStatus | None = None, asked: tuple[str, ...] = ()
) -> dict[str, int]:
    signals = pool_signals(pools, demands, now or SchedulerStatus(), NOW, asked)
    return {name: signal.wanted_workers for name, signal in signals.items()}


def test_a_pool_without_demand_needs_no_worker():
    assert wanted(config(p=PoolConfig(models=("a",))), [], status(worker("p"))) == {"p": 0}


def test_what_waits_for_a_pool_without_workers_wants_one():
    pools = config(p=PoolConfig(models=("a",)), q=PoolConfig(models=("b",)))
    waits = Demand("a", "t", "train", num_requests=1, num_tokens=10, oldest_at=990.0)
    assert pool_signals(pools, [waits], SchedulerStatus(), NOW) == {
        "p": PoolSignal("p", 1, 1, 10.0, 0, 0),
        "q": PoolSignal("q", 0, 0, 0.0, 0, 0),
    }


def test_a_pool_that_nobody_named_is_for_all_that_has_no_home():
    at_home, homeless = Demand("a", "t", "train", 3, 30, 900.0), Demand("b", "t", "sample", 1, 10, 990.0)
    pools = config(p=PoolConfig(models=("a",)))
    assert wanted(pools, [at_home], asked=("new",)) == {"p": 1, "new": 0}
    assert wanted(pools, [at_home, homeless], asked=("new",)) == {"p": 1, "new": 1}
    connected = status(worker("new", models=("b",)))
    assert wanted(pools, [at_home, homeless], connected) == {"p": 1, "new": 1}
    assert wanted(pools, [homeless], connected, asked=("other",)) == {"p": 0, "new": 1, "other": 0}


def test_a_live_run_keeps_a_worker_and_a_closed_one_does_not():
    trainers = config(p=PoolConfig(models=("a",), role="train"))
    assert wanted(trainers, [Demand("a", "t", "train", num_live=1)]) == {"p": 1}
    assert wanted(trainers, [Demand("a", "t", "sample", num_live=1)]) == {"p": 0}  # not of this pool's role


def test_runs_and_tokens_want_more_workers():
    pool = PoolConfig(models=("a",), role="train", runs_per_worker=4, training_tokens_per_s=100, target_wait_s=10)
    assert wanted(config(p=pool), [Demand("a", "t", "train", num_live=9)]) == {"p": 3}
    backlog = Demand("a", "t", "train", num_requests=7, num_tokens=4500, oldest_at=1.0, num_live=1)
    assert wanted(config(p=pool), [backlog]) == {"p": 5}
    both = replace_role(pool, "both")
    assert wanted(config(p=both), [backlog, Demand("a", "t", "sample", 1, 30_000, 1.0)]) == {"p": 6}


def replace_role(pool: PoolConfig, role: WorkerRole) -> PoolConfig:
    return pool.model_copy(update={"role": role})


def test_pools_that_serve_the_same_share_its_demand():
    pool = PoolConfig(models=("a",), role="train", runs_per_worker=1)
    demands = [Demand("a", "t", "train", num_live=8)]
    assert wanted(config(p=pool, q=pool), demands) == {"p": 4, "q": 4}


def test_what_quotas_hold_back_wants_no_worker():
    pools = config(p=PoolConfig(models=("a",)))
    paused = SchedulerStatus(pauses={"t": Pause("paused_rate_limit", "used up")})
    waits = Demand("a", "t", "sample", num_requests=5, num_tokens=50, oldest_at=1.0)
    assert wanted(pools, [waits], paused) == {"p": 0}
    assert wanted(pools, [waits, replace(waits, tenant_id="other")], paused) == {"p": 1}
    assert pool_signals(pools, [waits], paused, NOW)["p"].waiting_requests == 0


def test_a_rate_is_configured_or_measured_or_the_default():
    backlog = [Demand("a", "t", "train", 1, 60_000, 1.0), Demand("a", "t", "sample", 1, 90_000, 1.0)]
    unset, ours = PoolConfig(models=("a",), target_wait_s=10), {"training_tokens_per_s": 6000.0}

    def wants(pool: PoolConfig, rates: dict[Served, float]) -> int:
        return pool_signals(config(p=pool), backlog, SchedulerStatus(), NOW, rates=rates)["p"].wanted_workers

    assert wants(unset, {}) == 8  # 60,000 and 90,000 at 2,000 tokens a second in 10 s
    measured: dict[Served, float] = {("a", "train"): 1000.0, ("a", "sample"): 3000.0, ("b", "train"): 1.0}
    assert wants(unset, measured) == 9
    assert wants(unset.model_copy(update=ours), measured) == 4


def test_the_best_hour_tells_the_rate_and_idle_hours_tell_nothing():
    work = [
        HourOfWork("a", "train", 1, 100_000, 100.0),
        HourOfWork("a", "train", 2, 400_000, 100.0),
        HourOfWork("a", "train", 3, 10**6, LEAST_BUSY_S - 1),
        HourOfWork("a", "sample", 1, 0, 1000.0),
    ]
    assert measured_rates(work) == {("a", "train"): 4000.0}


demand_of = st.builds(
    Demand,
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from(["t", "u"]),
    st.sampled_from(SIDES),
    st.integers(0, 50),
    st.integers(0, 10**6),
    st.none() | st.floats(0.0, NOW),
    st.integers(0, 40),
)
work_of = st.builds(
    HourOfWork,
    st.sampled_from(["a", "b"]),
    st.sampled_from(SIDES),
    st.integers(0, 5),
    st.integers(0, 10**7),
    st.floats(0.0, 4000.0),
)
worker_of = st.builds(
    worker,
    st.sampled_from(["p", "q", "r"]),
    st.sampled_from(["train", "sample", "both"]),
    st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, unique=True).map(tuple),
)
pool_of = st.builds(
    PoolConfig,
    models=st.lists(st.sampled_from(["a", "b", "c"]), unique=True).map(tuple),
    role=st.sampled_from(["train", "sample", "both"]),
)


@given(
    demands=st.lists(demand_of, max_size=8),
    workers=st.lists(worker_of, max_size=5),
    pools=st.dictionaries(st.sampled_from(["p", "q", "s"]), pool_of),
    work=st.lists(work_of, max_size=6),
)
def test_no_demand_is_without_a_pool_and_no_pool_grows_without_demand(
    demands: list[Demand], workers: list[WorkerStatus], pools: dict[str, PoolConfig], work: list[HourOfWork]
):
    rates = measured_rates(work)
    signals = pool_signals(config(**pools), demands, status(*workers), NOW, ("asked",), rates)
    has_demand = any(each.num_requests or each.num_live for each in demands)
    assert any(signal.wanted_workers for signal in signals.values()) == has_demand
    for signal in signals.values():
        assert signal.wanted_workers >= 0
        assert signal.waiting_seconds >= 0.0
    for each in demands:
        if each.num_requests or each.num_live:
            homes = [name for name, pool in pools.items() if serves(pool.models, pool.role, each)]
            homes += [w.pool for w in workers if serves(w.base_models, w.role, each)]
            assert any(signals[name].wanted_workers for name in homes or ["asked"])


@given(work=st.lists(work_of, max_size=8), more=work_of, num_tokens=st.integers(0, 10**8))
def test_more_history_only_raises_a_rate_and_a_higher_rate_never_wants_more(
    work: list[HourOfWork], more: HourOfWork, num_tokens: int
):
    before, after = measured_rates(work), measured_rates([*work, more])
    assert all(0.0 < rate <= after[served] for served, rate in before.items())
    pools, waits = config(p=PoolConfig(models=("a",))), [Demand("a", "t", "sample", 1, num_tokens, 1.0)]
    wants = [pool_signals(pools, waits, SchedulerStatus(), NOW, rates=each)["p"] for each in (before, after)]
    if ("a", "sample") in before:
        assert wants[0].wanted_workers >= wants[1].wanted_workers >= 1


def serves(models: tuple[str, ...], role: WorkerRole, demand: Demand) -> bool:
    return demand.base_model in models and role in (demand.side, "both")
