"""How many workers each pool should have: a pure function of what the store knows, so that any process can tell."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from openrl.config import Config, PoolConfig, WorkerRole
from openrl.store.cluster import Demand, HourOfWork, SchedulerStatus, Side, WorkerStatus

_SIDES: tuple[Side, ...] = ("train", "sample")
Served = tuple[str, Side]
"""A base model and what is done with it."""
DEFAULT_TOKENS_PER_S = 2000.0
"""Of a model that has no history, where a pool's configuration has no rate."""
LEAST_BUSY_S = 60.0
RATE_HOURS = 168
"""Of the ledger, from which rates are measured: a week, so that a quiet weekend forgets nothing."""


@dataclass(frozen=True, slots=True)
class PoolSignal:
    """What an autoscaler reads of one pool."""

    pool: str
    wanted_workers: int
    waiting_requests: int  # accepted and not ended, of what its workers serve
    waiting_seconds: float  # age of the oldest of them
    live_runs: int
    workers: int  # connected and not drained


@dataclass(frozen=True, slots=True)
class _Pool:
    name: str
    config: PoolConfig
    serves: frozenset[Served]
    num_workers: int


def pool_signals(
    config: Config,
    demands: Sequence[Demand],
    status: SchedulerStatus,
    now: float,
    asked: Collection[str] = (),
    rates: Mapping[Served, float] = MappingProxyType({}),
) -> dict[str, PoolSignal]:
    """Of every pool that is configured, connected or asked for.

    What a tenant's quotas hold back wants no worker. Where several pools serve the same, each should have its equal
    part of what that needs. `rates` are those of `measured_rates`, for pools whose configuration has none.
    """
    names = {*config.pools, *(worker.pool for worker in status.workers), *asked}
    paused = {tenant for tenant, pause in status.pauses.items() if pause.state == "paused_rate_limit"}
    live = [_without_requests(each) if each.tenant_id in paused else each for each in demands]
    pools = [_resolve(name, config, live, status) for name in sorted(names)]
    return {pool.name: _signal(pool, pools, live, now, rates) for pool in pools}


def _resolve(name: str, config: Config, demands: Sequence[Demand], status: SchedulerStatus) -> _Pool:
    """What a pool serves: as configured and as its workers say, or else all that nobody serves."""
    pool = config.pools.get(name, PoolConfig())
    workers = [worker for worker in status.workers if worker.pool == name]
    num_workers = sum(worker.state == "working" for worker in workers)
    serves = _served(pool.models, pool.role) | {
        served for each in workers for served in _served(each.base_models, each.role)
    }
    if not serves:
        wanted: set[Served] = {(each.base_model, each.side) for each in demands}
        serves = frozenset(served for served in wanted if not _has_a_home(served, config, status.workers))
    return _Pool(name, pool, serves, num_workers)


def _has_a_home(served: Served, config: Config, workers: Iterable[WorkerStatus]) -> bool:
    is_named = any(served in _served(pool.models, pool.role) for pool in config.pools.values())
    return is_named or any(served in _served(worker.base_models, worker.role) for worker in workers)


def _served(models: Iterable[str], role: WorkerRole) -> frozenset[Served]:
    return frozenset((model, side) for model in models for side in _SIDES if role in (side, "both"))


def measured_rates(work: Iterable[HourOfWork]) -> dict[Served, float]:
    """Tokens that one worker gets through in a second of device time, of each model and side.

    The best hour counts: in others small batches may have wasted the device, which more workers would not mend. Hours
    with less than `LEAST_BUSY_S` of device time say nothing.
    """
    rates: dict[Served, float] = {}
    for each in work:
        if each.busy_s >= LEAST_BUSY_S and each.num_tokens > 0:
            served = (each.base_model, each.side)
            rates[served] = max(rates.get(served, 0.0), each.num_tokens / each.busy_s)
    return rates


def _signal(
    pool: _Pool, pools: Sequence[_Pool], demands: Sequence[Demand], now: float, rates: Mapping[Served, float]
) -> PoolSignal:
    ours = [each for each in demands if (each.base_model, each.side) in pool.serves]
    load = 0.0
    for served in sorted(pool.serves):
        num_pools = sum(served in other.serves for other in pools)
        of_served = [each for each in ours if (each.base_model, each.side) == served]
        load += _load(served, of_served, pool.config, rates) / num_pools
    oldest = min((each.oldest_at for each in ours if each.oldest_at is not None), default=now)
    is_wanted = any(each.num_requests or each.num_live for each in ours)
    return PoolSignal(
        pool=pool.name,
        wanted_workers=max(math.ceil(load), pool.config.hot_workers) if is_wanted else 0,
        waiting_requests=sum(each.num_requests for each in ours),
        waiting_seconds=max(0.0, now - oldest),
        live_runs=sum(each.num_live for each in ours if each.side == "train"),
        workers=pool.num_workers,
    )


def _load(served: Served, demands: Sequence[Demand], pool: PoolConfig, rates: Mapping[Served, float]) -> float:
    """Workers that are busy with it."""
    is_training = served[1] == "train"
    configured = pool.training_tokens_per_s if is_training else pool.sampling_tokens_per_s
    rate = configured or rates.get(served, DEFAULT_TOKENS_PER_S)
    busy = sum(each.num_tokens for each in demands) / (rate * pool.target_wait_s)
    num_runs = sum(each.num_live for each in demands)
    return max(busy, num_runs / pool.runs_per_worker) if is_training else busy


def _without_requests(demand: Demand) -> Demand:
    return Demand(demand.base_model, demand.tenant_id, demand.side, num_live=demand.num_live)
