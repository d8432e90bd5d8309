"""Looking up rows in plain dicts, adding them, and what makes two of them the same one asked for again."""

from typing import TypeVar

from openrl.errors import InvalidRequest, NotFound
from openrl.store.base import RequestRow, RunRow, SamplerRow, SessionRow

T = TypeVar("T")
R = TypeVar("R", SessionRow, SamplerRow, RequestRow)


def found_row(row: T | None, what: str, name: str) -> T:
    """The row; raises NotFound if there is none."""
    if row is None:
        raise NotFound.of(what, name)
    return row


def owned_row(row: R | None, tenant_id: str, what: str, name: str) -> R:
    """The row; raises NotFound if there is none, or it is another tenant's."""
    if row is None or row.tenant_id != tenant_id:
        raise NotFound.of(what, name)
    return row


def insert_row(rows: dict[str, T], row_id: str, row: T) -> T:
    """Add a row; raises InvalidRequest when its id is taken."""
    if row_id in rows:
        raise InvalidRequest(f"an id is taken: {row_id!r}")
    rows[row_id] = row
    return row


def retry_of_session(row: SessionRow) -> tuple[str, str | None]:
    """What a retry of `create_session` has in common with the first."""
    return row.tenant_id, row.idempotency_key


def retry_of_run(row: RunRow) -> tuple[str, str, int]:
    """What a retry of `create_run` has in common with the first."""
    return row.spec.tenant_id, row.session_id, row.model_seq_id


def retry_of_sampler(row: SamplerRow) -> tuple[str, str, int]:
    """What a retry of `create_sampler` has in common with the first."""
    return row.tenant_id, row.session_id, row.sampling_session_seq_id
