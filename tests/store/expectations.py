"""What several test modules of the store expect."""

from collections.abc import Awaitable

import pytest

from openrl.errors import OpenRLError
from openrl.store.base import RequestRow, Store
from openrl.store.schema import metadata
from tests.postgres import PostgresServer
from tests.store.rows_for_tests import ALICE, request, run


async def refused_as(call: Awaitable[object], error: type[OpenRLError]) -> str:
    with pytest.raises(error) as caught:
        await call
    assert type(caught.value) is error
    return str(caught.value)


async def start_run(store: Store, run_id: str = "r1", tenant_id: str = ALICE) -> RequestRow:
    return (await store.create_run(run(run_id, tenant_id), request(run_id, 0, tenant_id), b"create"))[1]


def empty(server: PostgresServer, url: str) -> None:
    """Delete all rows of a database on PostgreSQL that nobody uses."""
    tables = [table for table in metadata.tables if table != "counters"]
    statements = [*(f"DELETE FROM {table}" for table in tables), "UPDATE counters SET value = 0"]
    server.execute("; ".join(statements), url.rpartition("/")[2])
