"""Turns the rows of the contract into column values and back."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from sqlalchemy import Column, Connection, Select, Table, select

from openrl.errors import NotFound
from openrl.protocol.runs import RunSpec
from openrl.store import schema
from openrl.store.base import CheckpointRow, RequestRow, RunRow, SamplerRow, SessionRow
from openrl.store.identities import ApiKeyRow, ShareRow, TenantRow, UserRow

PlainRow = TenantRow | UserRow | ApiKeyRow | ShareRow | SessionRow | SamplerRow | CheckpointRow
"""Rows whose fields are columns as they are, but for a session's tags."""
AnyRow = PlainRow | RunRow | RequestRow
R = TypeVar("R", bound=AnyRow)
Values = dict[str, Any]
SPEC_NAMES = tuple(field.name for field in fields(RunSpec) if field.name != "optimizer")
RUN_NAMES = SPEC_NAMES + tuple(field.name for field in fields(RunRow) if field.name != "spec")
REQUEST_NAMES = tuple(field.name for field in fields(RequestRow))
SESSION_TAGS = [field.name for field in fields(SessionRow)].index("tags")
RUN_SEED = SPEC_NAMES.index("seed")
RUN_OPTIMIZER = RUN_NAMES.index("optimizer_config") - len(SPEC_NAMES)


def request_values(row: RequestRow) -> Values:
    """Column values of a request."""
    return {name: getattr(row, name) for name in REQUEST_NAMES}


def session_values(row: SessionRow) -> Values:
    """Column values of a session."""
    return {**plain_values(row), "tags": list(row.tags)}


def run_values(row: RunRow) -> Values:
    """Column values of a run, its spec spread out."""
    spec = {name: getattr(row.spec, name) for name in SPEC_NAMES}
    rest = {name: getattr(row, name) for name in RUN_NAMES[len(SPEC_NAMES) :]}
    return {**spec, **rest, "seed": str(row.spec.seed)}


def plain_values(row: PlainRow) -> Values:
    """Column values of a row whose fields are columns as they are."""
    return {field.name: getattr(row, field.name) for field in fields(row)}


def select_rows(kind: type[AnyRow]) -> Select[Any]:
    """A select of the columns of a row type, in the order that `rows_of` expects."""
    return select(*_columns(kind))


def rows_of(connection: Connection, kind: type[R], query: Select[Any], values: Values | None = None) -> tuple[R, ...]:
    """Run a query made by `select_rows(kind)`."""
    build = _BUILDERS[kind]
    return tuple(build(row) for row in connection.execute(query, values))


def first_row(connection: Connection, kind: type[R], query: Select[Any]) -> R | None:
    """The first row of a query made by `select_rows(kind)`, or None."""
    found = connection.execute(query).first()
    return None if found is None else _BUILDERS[kind](found)


def one_row(connection: Connection, kind: type[R], query: Select[Any], what: str, name: str) -> R:
    """The first row of a query made by `select_rows(kind)`; raises NotFound: no `what` has the name."""
    found = first_row(connection, kind, query)
    if found is None:
        raise NotFound.of(what, name)
    return found


def _columns(kind: type[AnyRow]) -> list[Column[Any]]:
    names = RUN_NAMES if kind is RunRow else tuple(field.name for field in fields(kind))
    return [_TABLES[kind].c[name] for name in names]


def _build_session(row: Sequence[Any]) -> SessionRow:
    values = list(row)
    values[SESSION_TAGS] = tuple(values[SESSION_TAGS])
    return SessionRow(*values)


def _build_run(row: Sequence[Any]) -> RunRow:
    spec = list(row[: len(SPEC_NAMES)])
    spec[RUN_SEED] = int(spec[RUN_SEED])
    rest = row[len(SPEC_NAMES) :]
    config = rest[RUN_OPTIMIZER]  # the family has no column of its own
    return RunRow(RunSpec(*spec, optimizer=config.get("type", "adamw")), *rest)


_TABLES: dict[type[AnyRow], Table] = {
    TenantRow: schema.tenants,
    UserRow: schema.users,
    ApiKeyRow: schema.api_keys,
    ShareRow: schema.shares,
    SessionRow: schema.sessions,
    RunRow: schema.runs,
    SamplerRow: schema.samplers,
    RequestRow: schema.requests,
    CheckpointRow: schema.checkpoints,
}
_BUILDERS: dict[type[AnyRow], Callable[[Sequence[Any]], Any]] = {
    TenantRow: lambda row: TenantRow(*row),
    UserRow: lambda row: UserRow(*row),
    ApiKeyRow: lambda row: ApiKeyRow(*row),
    ShareRow: lambda row: ShareRow(*row),
    SessionRow: _build_session,
    RunRow: _build_run,
    SamplerRow: lambda row: SamplerRow(*row),
    RequestRow: lambda row: RequestRow(*row),
    CheckpointRow: lambda row: CheckpointRow(*row),
}
