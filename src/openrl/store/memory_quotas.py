"""Quotas in plain dicts: the part of `MemoryStore` that mirrors `quota_rows.py` and `stored_bytes.py`."""

from collections import Counter
from collections.abc import Callable, Mapping

from openrl.errors import QuotaReached
from openrl.store.base import CheckpointRow, FinishedRequest, RequestRow, RunRow
from openrl.store.cluster import Demand, HourOfWork
from openrl.store.demand import add_up, work_of
from openrl.store.identities import Actor
from openrl.store.ledger import HOUR_S
from openrl.store.memory_checkpoints import is_expired
from openrl.store.memory_ledger import MemoryLedger
from openrl.store.quota_rows import no_quota
from openrl.store.quotas import Bound, DeviceUse, Holding, QuotaRow, check_bound, clear_entry, set_entry
from openrl.store.stored_bytes import over_quota, saved_files


class MemoryQuotas(MemoryLedger):
    """Base of `MemoryStore`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._quotas: dict[tuple[str, str], QuotaRow] = {}

    @property
    def quotas(self) -> "MemoryQuotas":
        return self

    async def list_quotas(self) -> tuple[QuotaRow, ...]:
        return tuple(self._quotas[key] for key in sorted(self._quotas))

    async def quotas_of(self, tenant_id: str) -> tuple[QuotaRow, ...]:
        return tuple(row for row in await self.list_quotas() if row.tenant_id == tenant_id)

    async def put_quota(self, row: QuotaRow, by: Actor) -> None:
        self._quotas[row.tenant_id, row.project_id] = row
        self._record(row.tenant_id, set_entry(row, by))

    async def clear_quota(self, tenant_id: str, project_id: str, now: float, by: Actor) -> None:
        if self._quotas.pop((tenant_id, project_id), None) is None:
            raise no_quota(tenant_id, project_id)
        self._record(tenant_id, clear_entry(project_id, now, by))

    async def holdings(self, tenant_id: str) -> tuple[Holding, ...]:
        stored, live = self._stored(tenant_id, self._clock()), self._live(tenant_id)
        return tuple(Holding(name, stored[name], live[name]) for name in sorted(stored.keys() | live.keys()))

    async def num_queued(self, tenant_id: str) -> Mapping[str, int]:
        queued = (row for row in self._requests.values() if (row.tenant_id, row.state) == (tenant_id, "queued"))
        return Counter(self._project_of(row.session_id) for row in queued)

    async def has_later(self, tenant_id: str, run_id: str, seq_id: int) -> bool:
        of_run = (row for row in self._requests.values() if (row.tenant_id, row.run_id) == (tenant_id, run_id))
        return any(row.seq_id > seq_id and row.state == "queued" for row in of_run)

    async def device_use(self, first_hour: int) -> tuple[DeviceUse, ...]:
        use: Counter[tuple[str, str]] = Counter()
        for key, used in self._used(None, first_hour, int(self._clock() // HOUR_S) + 2**31):
            use[key.tenant_id, self._project_of(key.session_id)] += used.busy_us
        return tuple(DeviceUse(*owner, use[owner]) for owner in sorted(use) if use[owner])

    def _all_demand(self) -> tuple[Demand, ...]:
        queued = (
            Demand(
                row.base_model,
                row.tenant_id,
                "sample" if row.kind == "sample" else "train",
                1,
                row.num_tokens,
                row.created_at,
            )
            for row in self._requests.values()
            if row.state == "queued"
        )
        live = (
            Demand(run.spec.base_model, run.spec.tenant_id, "train", num_live=1)
            for run in self._runs.values()
            if not run.is_closed
        )
        samplers = {(row.base_model, row.tenant_id, row.session_id) for row in self._samplers.values()}
        sampled = (
            Demand(base_model, tenant_id, "sample", num_live=1)
            for base_model, tenant_id, session_id in samplers
            if session_id in self._sessions and self._sessions[session_id].state == "active"
        )
        return add_up([*queued, *live, *sampled])

    def _work(self, first_hour: int, end_hour: int) -> tuple[HourOfWork, ...]:
        used = self._used(None, first_hour, end_hour)
        return work_of((key.base_model, key.kind, key.hour, each.amount, each.busy_us) for key, each in used)

    def _check_live_runs(self, run: RunRow, bound: Bound) -> None:
        check_bound("live_runs", self._live(run.spec.tenant_id), self._project_of(run.session_id), 1, bound)

    def _check_stored(self, copy: CheckpointRow, run: RunRow, bound: Bound) -> None:
        held = self._stored(copy.tenant_id, copy.created_at)
        check_bound("stored_bytes", held, self._project_of(run.session_id), copy.size_bytes, bound)

    def _with_stored_checked(self, row: RequestRow, item: FinishedRequest) -> FinishedRequest:
        key, size_bytes = saved_files(item)
        if key is None:
            return item
        new = item.checkpoint
        old = None if new is None else self._checkpoints.rows.get((new.run_id, new.kind, new.name))
        if old is not None and not is_expired(old, item.finished_at):
            size_bytes -= old.size_bytes
        project_id = self._project_of(self._runs[row.run_id].session_id if row.run_id in self._runs else "")
        try:
            held = self._stored(row.tenant_id, item.finished_at)
            check_bound("stored_bytes", held, project_id, size_bytes, item.max_stored)
        except QuotaReached as error:
            if not self._checkpoints.is_used(key):
                self._checkpoints.doomed.add(key)
            return over_quota(item, error)
        return item

    def _live(self, tenant_id: str) -> Counter[str]:
        runs = (run for run in self._runs.values() if run.spec.tenant_id == tenant_id and not run.is_closed)
        return Counter(self._project_of(run.session_id) for run in runs)

    def _stored(self, tenant_id: str, now: float) -> Counter[str]:
        stored: Counter[str] = Counter()
        for row in self._checkpoints.rows.values():
            if row.tenant_id == tenant_id and not is_expired(row, now):
                run = self._runs.get(row.run_id)
                stored[self._project_of("" if run is None else run.session_id)] += row.size_bytes
        for run in self._runs.values():
            if run.spec.tenant_id == tenant_id and not run.is_closed and run.snapshot_bytes:
                stored[self._project_of(run.session_id)] += run.snapshot_bytes
        for sampler in self._samplers.values():
            session = self._sessions.get(sampler.session_id)
            is_kept = sampler.is_ephemeral and session is not None and session.state == "active"
            if sampler.tenant_id == tenant_id and is_kept:
                stored[self._project_of(sampler.session_id)] += sampler.size_bytes
        return stored
