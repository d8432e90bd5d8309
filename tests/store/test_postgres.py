"""What is particular to a database on PostgreSQL."""

import asyncio
from dataclasses import replace

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from openrl.errors import InvalidRequest, Unavailable
from openrl.store.blobs import DirectoryBlobs
from openrl.store.engines import open_engines
from openrl.store.memory_blobs import MemoryBlobs
from openrl.store.retention import packs_in_use
from openrl.store.schema import metadata
from openrl.store.sql import create_store
from tests.postgres import PostgresServer, new_database
from tests.store.expectations import refused_as
from tests.store.rows_for_tests import ALICE, checkpoint, done, request, run, session


def test_the_migrations_make_the_tables_that_the_queries_expect(postgres: PostgresServer):
    url = new_database(postgres)
    for _ in range(2):  # opening again changes nothing
        engines = open_engines(url)
        with engines.reader.begin() as connection:
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        engines.dispose()


async def test_of_processes_that_start_at_once_one_migrates(postgres: PostgresServer):
    url = new_database(postgres)
    stores = await asyncio.gather(*(create_store(url, MemoryBlobs()) for _ in range(4)))
    assert (await stores[0].enqueue(request("r1", 1), b"p")).position == 1
    for store in stores:
        await store.close()


def test_text_is_ordered_by_bytes_whatever_the_language_of_the_database(postgres: PostgresServer, database_url: str):
    query = (
        "SELECT table_name, column_name, collation_name FROM information_schema.columns "
        "WHERE table_schema = 'public' AND data_type LIKE 'char%' AND table_name <> 'alembic_version'"
    )
    columns = postgres.execute(query, database_url.rpartition("/")[2])
    assert len(columns) > 50
    assert [column for column in columns if column[2] != "C"] == []
    [(in_language,)] = postgres.execute("SELECT 'pack;' < 'pack:z'", database_url.rpartition("/")[2])
    assert in_language  # as the tests' server orders, the range of a pack would be empty


async def test_only_the_rows_of_a_pack_keep_it(database_url: str):
    class Packs(MemoryBlobs):
        def put_payloads(self, payloads: object) -> list[str]:
            return ["pack:z"]

    store = await create_store(database_url, Packs())
    await store.enqueue(request("r1", 1), b"p")
    with store._engines.reader.begin() as connection:
        assert packs_in_use(connection, ("pac", "pack", "Pack", "pack0")) == {"pack"}
    await store.close()


async def test_commits_are_synced_and_a_reader_sees_one_state(database_url: str):
    engines = open_engines(database_url)
    with engines.writer.begin() as connection:
        assert connection.scalar(text("SHOW synchronous_commit")) == "on"
        assert connection.scalar(text("SHOW transaction_isolation")) == "read committed"
        locks = connection.scalar(text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"))
        assert locks == 1
    with engines.reader.begin() as connection:
        assert connection.scalar(text("SHOW transaction_isolation")) == "repeatable read"
    engines.dispose()


async def test_a_server_that_does_not_answer_is_said_so():
    with pytest.raises(Unavailable, match=r"postgresql.*does not open") as refused:
        await create_store("postgresql://me:hunter2@127.0.0.1:1/db", MemoryBlobs())
    assert "hunter2" not in str(refused.value)


async def test_values_that_postgresql_does_not_take_fail_alone(database_url: str, pair_blobs: DirectoryBlobs):
    store = await create_store(database_url, pair_blobs)
    large = replace(run("r3"), spec=replace(run("r3").spec, rank=2**31))
    extra = {"x": "a\x00b", "y": "\ud800", "z": "\U0001f600", "b": 1, "a": 2}
    answers = await asyncio.gather(
        store.enqueue(request("r1", 1), b"p"),
        store.enqueue(request("r1", 2, base_model="a\x00b"), b"p"),
        store.enqueue(request("r1", 3, num_tokens=2**63), b"p"),
        store.enqueue(request("r1", 4, num_tokens=2**63 - 1), b"p"),
        store.enqueue(request("r1", 5, error="\ud800"), b"p"),
        store.create_session(session("s1", user_metadata={"x": float("nan")})),
        store.create_session(
            session("s2", user_metadata={"x": "a\x00b", "y": "\ud800", "z": "\U0001f600", "b": 1, "a": 2})
        ),
        store.create_session(session("s3", display_name="a\x00b")),
        store.create_run(run("r2", user_metadata={"x": [1, None]}), request("r2", 0), b"p"),
        store.create_run(large, request("r3", 0), b"p"),
        store.finish([done("alice-r1-1", error="a\x00b")]),
        store.finish([done("unknown\x00")]),
        return_exceptions=True,
    )
    names = [type(answer).__name__ for answer in answers]
    assert names == [
        *("RequestRow", "InvalidRequest", "InvalidRequest", "RequestRow", "InvalidRequest", "InvalidRequest"),
        *("SessionRow", "InvalidRequest", "tuple", "InvalidRequest", "InvalidRequest", "InvalidRequest"),
    ]
    kept = await store.get_session(ALICE, "s2")
    assert list((kept.user_metadata or {}).items()) == list(extra.items())
    assert (await store.get_request(ALICE, "alice-r1-1")).state == "queued"
    assert (await store.get_run(ALICE, "r2")).user_metadata == {"x": [1, None]}
    await store.close()


async def test_questions_that_no_column_can_answer_are_refused(url: str):
    store = await create_store(url, MemoryBlobs())
    await refused_as(store.ended_samples(ALICE, "p\ud800", range(3), 0, 0.0), InvalidRequest)
    await refused_as(store.get_run(ALICE, "r\ud800"), InvalidRequest)
    await refused_as(store.run_log("r1", 2**70), InvalidRequest)
    await store.close()


async def test_a_nul_in_a_name_is_the_callers_mistake(database_url: str):
    store = await create_store(database_url, MemoryBlobs())
    await refused_as(store.get_request(ALICE, "a\x00b"), InvalidRequest)
    await refused_as(store.identities.identity_of_key("a\x00b", 1.0), InvalidRequest)
    await store.close()


async def test_listings_are_in_the_order_of_bytes(database_url: str):
    store = await create_store(database_url, MemoryBlobs(), clock=lambda: 0.0)
    row = await store.enqueue(request("r1", 1), b"p")
    names = ["a", "B", "a-b", "ab", "A", "_"]
    for name in names:
        await store.finish([done(row.request_id, checkpoint=checkpoint(name))])
        row = await store.enqueue(request("r1", 1 + row.seq_id), b"p")
    listed = await store.list_checkpoints(ALICE, 10, 0)
    assert [each.name for each in listed.items] == sorted(names, reverse=True)
    await store.close()
