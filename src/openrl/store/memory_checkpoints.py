"""Checkpoints in plain dicts: the part of `MemoryStore` that mirrors `checkpoints.py`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from openrl.errors import NotFound
from openrl.protocol.paths import CheckpointPath
from openrl.protocol.runs import CheckpointKind
from openrl.store.base import CheckpointRow, FinishedRequest, Page
from openrl.store.requests import name_taken

CheckpointId = tuple[str, CheckpointKind, str]


class MemoryCheckpoints:
    """All checkpoints, and the keys in `doomed` whose files must be deleted."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.rows: dict[CheckpointId, CheckpointRow] = {}
        self.doomed: set[str] = set()

    def copy(self) -> "MemoryCheckpoints":
        """One that later changes do not touch."""
        twin = MemoryCheckpoints(self._clock)
        twin.rows, twin.doomed = dict(self.rows), set(self.doomed)
        return twin

    def put(self, row: CheckpointRow) -> None:
        """Insert in place of one with the same run, kind and name."""
        old = self.rows.get(_id_of(row))
        self.rows[_id_of(row)] = row
        if old is not None:
            self._doom_if_unused(old.key)

    def get(self, tenant_id: str, run_id: str, kind: CheckpointKind, name: str) -> CheckpointRow:
        """The tenant's own, or anybody's that is public."""
        row = self.rows.get((run_id, kind, name))
        if row is None or is_expired(row, self._clock()) or not (row.is_public or row.tenant_id == tenant_id):
            raise _not_found(run_id, kind, name)
        return row

    def own(self, tenant_id: str, run_id: str, kind: CheckpointKind, name: str) -> CheckpointRow:
        """The tenant's own that has not expired."""
        row = self.owned(tenant_id, run_id, kind, name)
        if is_expired(row, self._clock()):
            raise _not_found(run_id, kind, name)
        return row

    def list(
        self, tenant_id: str, limit: int, offset: int, is_wanted: Callable[[CheckpointRow], bool]
    ) -> Page[CheckpointRow]:
        """The tenant's own that are wanted, newest first."""
        rows = [r for r in self.rows.values() if r.tenant_id == tenant_id and not is_expired(r, self._clock())]
        rows = [row for row in rows if is_wanted(row)]
        rows.sort(key=lambda row: (row.created_at, row.run_id, row.kind, row.name), reverse=True)
        return Page(tuple(rows[offset : offset + limit]), len(rows))

    def owned(self, tenant_id: str, run_id: str, kind: CheckpointKind, name: str) -> CheckpointRow:
        """The tenant's own, expired or not."""
        row = self.rows.get((run_id, kind, name))
        if row is None or row.tenant_id != tenant_id:
            raise _not_found(run_id, kind, name)
        return row

    def delete(self, tenant_id: str, run_id: str, kind: CheckpointKind, name: str) -> CheckpointRow:
        """Remove the tenant's own."""
        row = self.owned(tenant_id, run_id, kind, name)
        self._remove(row)
        return row

    def delete_expired(self, now: float) -> tuple[CheckpointRow, ...]:
        """Remove those of all tenants past their expiry."""
        expired = [row for row in self.rows.values() if is_expired(row, now)]
        for row in expired:
            self._remove(row)
        return tuple(sorted(expired, key=lambda row: (row.expires_at, row.run_id, row.kind, row.name)))

    def update(
        self,
        tenant_id: str,
        run_id: str,
        kind: CheckpointKind,
        name: str,
        is_public: bool | None,
        expires_at: float | Literal["never"] | None,
    ) -> CheckpointRow:
        """Change the tenant's own; returns it as it is then."""
        row = self.own(tenant_id, run_id, kind, name)
        if is_public is not None:
            row = replace(row, is_public=is_public)
        if expires_at is not None:
            row = replace(row, expires_at=None if expires_at == "never" else expires_at)
        self.rows[_id_of(row)] = row
        return row

    def is_used(self, key: str) -> bool:
        """Whether a checkpoint has its files under this key."""
        return any(row.key == key for row in self.rows.values())

    def with_name_checked(self, item: FinishedRequest) -> FinishedRequest:
        """The same end; failed if it saves under a name that is taken and must not replace."""
        saved = item.checkpoint
        if saved is None or item.may_replace:
            return item
        old = self.rows.get(_id_of(saved))
        if old is None or is_expired(old, item.finished_at):
            return item
        self._doom_if_unused(saved.key)
        return name_taken(item, str(CheckpointPath(saved.run_id, saved.kind, saved.name)))

    def _remove(self, row: CheckpointRow) -> None:
        del self.rows[_id_of(row)]
        self._doom_if_unused(row.key)

    def _doom_if_unused(self, key: str) -> None:
        if not self.is_used(key):
            self.doomed.add(key)


def _id_of(row: CheckpointRow) -> CheckpointId:
    return row.run_id, row.kind, row.name


def is_expired(row: CheckpointRow, now: float) -> bool:
    """Whether its time is over."""
    return row.expires_at is not None and row.expires_at <= now


def _not_found(run_id: str, kind: CheckpointKind, name: str) -> NotFound:
    return NotFound.of("checkpoint", str(CheckpointPath(run_id, kind, name)))
