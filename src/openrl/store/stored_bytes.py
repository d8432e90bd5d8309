"""Fails saves that do not fit into what their tenant and project may store."""

from collections import Counter, defaultdict
from dataclasses import replace

from sqlalchemy import Connection, select

from openrl.errors import QuotaReached
from openrl.store import checkpoints, quota_rows
from openrl.store.base import FinishedRequest, RequestRow
from openrl.store.projects import is_kept
from openrl.store.quotas import check_bound
from openrl.store.schema import checkpoints as checkpoint_table


class StoredCheck:
    """For the saves of one transaction, each counted after those before it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._added: defaultdict[str, Counter[str]] = defaultdict(Counter)  # by tenant and project

    def checked(self, row: RequestRow, item: FinishedRequest) -> FinishedRequest:
        """The same end; failed if its files are too many, which are then to be deleted."""
        key, size_bytes = saved_files(item)
        if key is None or item.max_stored.is_open():
            return item
        project_id = quota_rows.project_of_run(self._connection, row.run_id)
        size_bytes -= self._replaced_bytes(item)
        held = Counter(self._added[row.tenant_id])
        for each in quota_rows.holdings(self._connection, row.tenant_id, item.finished_at):
            held[each.project_id] += each.stored_bytes
        try:
            check_bound("stored_bytes", held, project_id, size_bytes, item.max_stored)
        except QuotaReached as error:
            checkpoints.doom_if_unused(self._connection, key)
            return over_quota(item, error)
        self._added[row.tenant_id][project_id] += size_bytes
        return item

    def _replaced_bytes(self, item: FinishedRequest) -> int:
        """Of the checkpoint that goes when this one comes."""
        new, c = item.checkpoint, checkpoint_table.c
        if new is None:
            return 0
        same = select(c.size_bytes).where(c.run_id == new.run_id, c.kind == new.kind, c.name == new.name)
        return self._connection.scalar(same.where(is_kept(item.finished_at))) or 0


def saved_files(item: FinishedRequest) -> tuple[str | None, int]:
    """Key and size of the files that a save made."""
    if item.checkpoint is not None:
        return item.checkpoint.key, item.checkpoint.size_bytes
    if item.sampler is not None:
        return item.sampler.adapter_key, item.sampler.size_bytes
    return None, 0


def over_quota(item: FinishedRequest, error: QuotaReached) -> FinishedRequest:
    """The failed end of a save that does not fit."""
    return replace(
        item, state="failed", result_ref="", error=str(error), category="user", checkpoint=None, sampler=None
    )
