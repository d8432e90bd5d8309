import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from openrl.errors import InvalidRequest, NotFound, Unauthorized, Unavailable
from openrl.store.base import ApiKeyRow
from openrl.store.blobs import DirectoryBlobs
from openrl.store.cluster import Signal
from openrl.store.engines import open_engines
from openrl.store.identities import OPERATOR, Identity, SignIn
from openrl.store.memory_blobs import MemoryBlobs
from openrl.store.schema import metadata
from openrl.store.sql import create_store
from tests.store.rows_for_tests import ALICE, BOB, done, request, run, sample, sampler, session


def url_in(folder: Path) -> str:
    return f"sqlite:///{folder}/store.db"


def test_the_migrations_make_the_tables_that_the_queries_expect(tmp_path: Path):
    for _ in range(2):  # opening again changes nothing
        engines = open_engines(url_in(tmp_path))
        with engines.reader.begin() as connection:
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []
            assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "0012_from_0011"
        engines.dispose()


async def test_commits_tell_how_long_they_took(url: str):
    times: list[float] = []
    store = await create_store(url, MemoryBlobs(), timed=times.append)
    await store.create_session(session("s1"))
    await store.close()
    assert times
    assert all(seconds > 0 for seconds in times)


def test_a_process_of_the_version_before_goes_on_beside_the_new_schema(tmp_path: Path):
    """It does not know the newest column, so that must be one that can be left out."""
    engines = open_engines(url_in(tmp_path))
    newest = {"trace_context"}
    with engines.writer.begin() as connection:
        old = [column for column in metadata.tables["requests"].columns if column.name not in newest]
        names = ", ".join(column.name for column in old)
        values = ", ".join(
            "1" if "INT" in str(column.type) or "DOUBLE" in str(column.type) else "'x'" for column in old
        )
        connection.execute(text(f"INSERT INTO requests ({names}) VALUES ({values})"))
        assert connection.scalar(text("SELECT trace_context FROM requests")) is None
    engines.dispose()


def test_commits_are_synced_to_disk(tmp_path: Path):
    engines = open_engines(url_in(tmp_path))
    for engine in (engines.writer, engines.reader):
        with engine.begin() as connection:
            assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
            assert connection.scalar(text("PRAGMA synchronous")) == 2
    engines.dispose()


@pytest.mark.parametrize("url", ["", "nonsense", "sqlite://", "sqlite:///:memory:", "mysql://host/db"])
async def test_a_url_that_cannot_be_served_is_refused(url: str):
    with pytest.raises(InvalidRequest):
        await create_store(url, MemoryBlobs())


async def test_a_database_that_does_not_open_is_said_so(tmp_path: Path):
    with pytest.raises(Unavailable):
        await create_store(f"sqlite:///{tmp_path}/missing/store.db", MemoryBlobs())


async def test_everything_is_there_after_reopening(url: str):
    blobs = MemoryBlobs()
    store = await create_store(url, blobs)
    await store.create_session(session("s1", tags=("a",)))
    created = await store.create_run(run("r1"), request("r1", 0), b"c")
    row = await store.enqueue(request("r1", 1), b"p")
    await store.close()
    await store.close()
    store = await create_store(url, blobs)
    assert await store.get_session(ALICE, "s1") == session("s1", tags=("a",))
    assert await store.get_run(ALICE, "r1") == replace(created[0], last_request_at=row.created_at)
    waiting = asyncio.create_task(store.wait_finished(ALICE, row.request_id, 30.0))
    groups = store.new_requests()
    assert await anext(groups) == (created[1], row)
    await store.finish([done(row.request_id)])
    assert (await waiting) == await store.get_request(ALICE, row.request_id)
    assert (await store.enqueue(request("r1", 2), b"p")).position == row.position + 1
    await store.close()


async def test_the_order_of_ended_samples_and_the_numbers_of_clients_go_on_after_reopening(url: str):
    blobs = MemoryBlobs()
    store = await create_store(url, blobs)
    await store.create_sampler(sampler("p"))
    for n in range(3):
        await store.enqueue(sample("p", n), b"p")
    await store.finish([done("p-1"), done("p-0")])
    seen = await store.ended_samples(ALICE, "p", range(10), 0, 0.0)
    assert await store.join_sampler(ALICE, "p") == 1
    await store.close()
    store = await create_store(url, blobs)
    assert await store.ended_samples(ALICE, "p", range(10), 0, 0.0) == seen
    await store.finish([done("p-2")])
    after = await store.ended_samples(ALICE, "p", range(10), seen[-1].end_position, 0.0)
    assert [row.request_id for row in after] == ["p-2"]
    assert await store.join_sampler(ALICE, "p") == 2
    await store.close()


async def test_calls_after_closing_are_refused(url: str):
    store = await create_store(url, MemoryBlobs())
    await store.close()
    for call in (
        store.identities.list_tenants(),
        store.enqueue(request("r1", 1), b"p"),
        store.wait_finished(ALICE, "q", 1.0),
    ):
        with pytest.raises(Unavailable):
            await call


async def test_closing_commits_what_was_submitted(url: str):
    store = await create_store(url, MemoryBlobs())
    pending = [asyncio.create_task(store.enqueue(request("r1", n), b"p")) for n in range(30)]
    await asyncio.sleep(0)
    await store.close()
    rows = await asyncio.gather(*pending)
    store = await create_store(url, MemoryBlobs())
    assert [await store.get_request(ALICE, row.request_id) for row in rows] == rows
    await store.close()


async def test_a_key_revoked_by_another_process_is_refused_after_a_few_seconds(
    url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("openrl.store.keys.MAX_AGE_S", 0.2)
    server = await create_store(url, MemoryBlobs())
    command_line = await create_store(url, MemoryBlobs())
    await command_line.identities.add_api_key(ApiKeyRow("h1", ALICE, "laptop", 1.0), OPERATOR)
    await command_line.identities.add_api_key(ApiKeyRow("h2", BOB, "laptop", 1.0), OPERATOR)
    assert (await server.identities.identity_of_key("h1", 1.0)).tenant_id == ALICE
    await command_line.identities.revoke_api_key(ALICE, "h1", 2.0, OPERATOR)
    await asyncio.sleep(0.3)
    with pytest.raises(Unauthorized):
        await server.identities.identity_of_key("h1", 1.0)
    assert (await server.identities.identity_of_key("h2", 1.0)).tenant_id == BOB
    await server.close()
    await command_line.close()


async def test_a_key_revoked_by_another_process_is_refused_as_soon_as_that_is_told(tmp_path: Path):
    server = await create_store(url_in(tmp_path), MemoryBlobs())
    command_line = await create_store(url_in(tmp_path), MemoryBlobs())
    for key_hash, tenant_id in (("h1", ALICE), ("h2", BOB)):
        await command_line.identities.add_api_key(ApiKeyRow(key_hash, tenant_id, "", 1.0), OPERATOR)
        assert (await server.identities.identity_of_key(key_hash, 1.0)).tenant_id == tenant_id
    told: list[Signal] = []
    command_line._cluster.call(told.append)
    await command_line.identities.revoke_api_key(ALICE, "h1", 2.0, OPERATOR)
    assert told == [Signal("keys_changed", ALICE)]
    assert (await server.identities.identity_of_key("h1", 1.0)).tenant_id == ALICE  # remembered for a few seconds
    await server.cluster.tell(told[0])
    with pytest.raises(Unauthorized):
        await server.identities.identity_of_key("h1", 1.0)
    assert (await server.identities.identity_of_key("h2", 1.0)).tenant_id == BOB
    await server.close()
    await command_line.close()


async def test_users_that_two_processes_make_at_once_are_made_once(url: str):
    stores = [await create_store(url, MemoryBlobs()) for _ in range(2)]
    new = SignIn("carol inc", "sub-1", email="c@carol.example", is_email_verified=True)
    first, second = await asyncio.gather(*(each.identities.sign_in(new, 1.0, may_create=True) for each in stores))
    assert first == second
    assert len(await stores[0].identities.list_tenants()) == 1
    for each in stores:
        await each.close()


async def test_keys_of_before_roles_stay_their_tenants_own(url: str):
    engines = open_engines(url)
    with engines.writer.begin() as connection:
        old = "INSERT INTO api_keys (key_hash, tenant_id, label, created_at) VALUES ('h1', 'alice', 'old', 1.0)"
        connection.execute(text(old))
    engines.dispose()
    store = await create_store(url, MemoryBlobs())
    assert await store.identities.identity_of_key("h1", 2.0) == Identity(ALICE, "", "admin", None, "h1")
    await store.close()


async def test_values_that_no_column_takes_fail_alone(url: str):
    store = await create_store(url, MemoryBlobs())
    answers = await asyncio.gather(
        store.enqueue(request("r1", 1), b"p"),
        store.enqueue(request("r1", 2, num_tokens=2**70), b"p"),
        store.enqueue(request("r1", 3, error="\ud800"), b"p"),
        store.create_session(session("s1", user_metadata={"x": object()})),
        store.create_session(session("s2")),
        return_exceptions=True,
    )
    assert [type(answer).__name__ for answer in answers] == [
        "RequestRow",
        "InvalidRequest",
        "InvalidRequest",
        "InvalidRequest",
        "SessionRow",
    ]
    assert (await store.list_sessions(ALICE, 10, 0)).total_count == 1
    with pytest.raises(NotFound):
        await store.get_request(ALICE, "alice-r1-2")
    await store.close()


async def test_when_payloads_cannot_be_written_only_their_requests_fail(url: str, tmp_path: Path):
    blobs = DirectoryBlobs(tmp_path / "blobs", pack_bytes=1)
    store = await create_store(url, blobs)
    first = await store.enqueue(request("r1", 1), b"p")
    (tmp_path / "blobs" / "packs").rename(tmp_path / "away")
    answers = await asyncio.gather(
        store.enqueue(request("r1", 2), b"p"),
        store.create_run(run("r2"), request("r2", 0), b"p"),
        store.enqueue(request("r1", 1), b"p"),
        store.finish([done(first.request_id)]),
        return_exceptions=True,
    )
    assert [type(answer).__name__ for answer in answers] == ["Unavailable", "Unavailable", "RequestRow", "NoneType"]
    (tmp_path / "away").rename(tmp_path / "blobs" / "packs")
    assert (await store.enqueue(request("r1", 2), b"p")).state == "queued"
    await store.close()
    blobs.close()


async def test_when_the_database_cannot_write_callers_are_told_and_it_recovers(tmp_path: Path):
    store = await create_store(url_in(tmp_path), MemoryBlobs())
    await store.enqueue(request("r1", 1), b"p")
    with store._engines.writer.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
    answers = await asyncio.gather(
        *(store.enqueue(request("r1", n, error="x" * 5000), b"p") for n in range(2, 12)), return_exceptions=True
    )
    assert {type(answer) for answer in answers} == {Unavailable}
    with store._engines.writer.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    assert (await store.enqueue(request("r1", 2), b"p")).state == "queued"
    assert (await store.get_request(ALICE, "alice-r1-1")).state == "queued"
    await store.close()


async def test_a_caller_that_goes_away_does_not_take_its_neighbours_with_it(url: str):
    store = await create_store(url, MemoryBlobs())
    tasks = [asyncio.create_task(store.enqueue(request("r1", n), b"p")) for n in range(10)]
    await asyncio.sleep(0)
    tasks[3].cancel()
    rows = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(row).__name__ for row in rows].count("RequestRow") == 9
    assert (await store.get_request(ALICE, "alice-r1-9")).state == "queued"
    await store.close()


ENQUEUE_UNTIL_KILLED = """
import asyncio, sys
from pathlib import Path
from openrl.store.blobs import DirectoryBlobs
from openrl.store.sql import create_store
from tests.store.rows_for_tests import done, request

async def caller(store, name):
    n = 0
    while True:
        row = await store.enqueue(request(name, n), f"payload of {name} {n}".encode() * 20)
        print("kept", row.request_id, flush=True)
        if n % 3 == 0:
            await store.finish([done(row.request_id)])
            print("done", row.request_id, flush=True)
        n += 1

async def main(url, root):
    store = await create_store(url, DirectoryBlobs(root / "blobs", pack_bytes=20_000))
    await asyncio.gather(*(caller(store, f"r{n}") for n in range(16)))

asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
"""


@pytest.mark.parametrize("num_acknowledged", [5, 400])
async def test_what_was_acknowledged_survives_a_kill(url: str, tmp_path: Path, num_acknowledged: int):
    command = [sys.executable, "-c", ENQUEUE_UNTIL_KILLED, url, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(num_acknowledged)]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.readlines()
    acknowledged = [line.split() for line in lines if line.endswith("\n")]
    assert len(acknowledged) >= num_acknowledged
    blobs = DirectoryBlobs(tmp_path / "blobs")
    store = await create_store(url, blobs)
    for what, request_id in acknowledged:
        row = await store.get_request(ALICE, request_id)
        payload = f"payload of {row.run_id} {row.seq_id}".encode() * 20
        assert await asyncio.to_thread(blobs.get_payload, row.payload_ref) == payload
        assert what == "kept" or row.state == "done"
    unfinished = await anext(store.new_requests())
    positions = [row.position for row in unfinished]
    assert positions == sorted(set(positions))
    await store.close()
    blobs.close()
