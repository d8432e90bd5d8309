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
from openrl.store.engines import open_engines
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
            assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "0006"
        engines.dispose()


def test_commits_are_synced_to_disk(tmp_path: Path):
    engines = open_engines(url_in(tmp_path))
    for engine in (engines.writer, engines.reader):
        with engine.begin() as connection:
            assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
            assert connection.scalar(text("PRAGMA synchronous")) == 2
    engines.dispose()


@pytest.mark.parametrize("url", ["", "nonsense", "sqlite://", "sqlite:///:memory:", "postgresql://host/db"])
async def test_a_url_that_cannot_be_served_is_refused(url: str):
    with pytest.raises(InvalidRequest):
        await create_store(url, MemoryBlobs())


async def test_a_database_that_does_not_open_is_said_so(tmp_path: Path):
    with pytest.raises(Unavailable):
        await create_store(f"sqlite:///{tmp_path}/missing/store.db", MemoryBlobs())


async def test_everything_is_there_after_reopening(tmp_path: Path):
    blobs = MemoryBlobs()
    store = await create_store(url_in(tmp_path), blobs)
    await store.create_session(session("s1", tags=("a",)))
    created = await store.create_run(run("r1"), request("r1", 0), b"c")
    row = await store.enqueue(request("r1", 1), b"p")
    await store.close()
    await store.close()
    store = await create_store(url_in(tmp_path), blobs)
    assert await store.get_session(ALICE, "s1") == session("s1", tags=("a",))
    assert await store.get_run(ALICE, "r1") == replace(created[0], last_request_at=row.created_at)
    waiting = asyncio.create_task(store.wait_finished(ALICE, row.request_id, 30.0))
    groups = store.new_requests()
    assert await anext(groups) == (created[1], row)
    await store.finish([done(row.request_id)])
    assert (await waiting) == await store.get_request(ALICE, row.request_id)
    assert (await store.enqueue(request("r1", 2), b"p")).position == row.position + 1
    await store.close()


async def test_the_order_of_ended_samples_and_the_numbers_of_clients_go_on_after_reopening(tmp_path: Path):
    blobs = MemoryBlobs()
    store = await create_store(url_in(tmp_path), blobs)
    await store.create_sampler(sampler("p"))
    for n in range(3):
        await store.enqueue(sample("p", n), b"p")
    await store.finish([done("p-1"), done("p-0")])
    seen = await store.ended_samples(ALICE, "p", range(10), 0, 0.0)
    assert await store.join_sampler(ALICE, "p") == 1
    await store.close()
    store = await create_store(url_in(tmp_path), blobs)
    assert await store.ended_samples(ALICE, "p", range(10), 0, 0.0) == seen
    await store.finish([done("p-2")])
    after = await store.ended_samples(ALICE, "p", range(10), seen[-1].end_position, 0.0)
    assert [row.request_id for row in after] == ["p-2"]
    assert await store.join_sampler(ALICE, "p") == 2
    await store.close()


async def test_calls_after_closing_are_refused(tmp_path: Path):
    store = await create_store(url_in(tmp_path), MemoryBlobs())
    await store.close()
    for call in (store.list_tenants(), store.enqueue(request("r1", 1), b"p"), store.wait_finished(ALICE, "q", 1.0)):
        with pytest.raises(Unavailable):
            await call


async def test_closing_commits_what_was_submitted(tmp_path: Path):
    store = await create_store(url_in(tmp_path), MemoryBlobs())
    pending = [asyncio.create_task(store.enqueue(request("r1", n), b"p")) for n in range(30)]
    await asyncio.sleep(0)
    await store.close()
    rows = await asyncio.gather(*pending)
    store = await create_store(url_in(tmp_path), MemoryBlobs())
    assert [await store.get_request(ALICE, row.request_id) for row in rows] == rows
    await store.close()


async def test_a_key_revoked_by_another_process_is_refused_after_a_few_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("openrl.store.keys.MAX_AGE_S", 0.2)
    server = await create_store(url_in(tmp_path), MemoryBlobs())
    command_line = await create_store(url_in(tmp_path), MemoryBlobs())
    await command_line.add_api_key(ApiKeyRow("h1", ALICE, "laptop", 1.0))
    await command_line.add_api_key(ApiKeyRow("h2", BOB, "laptop", 1.0))
    assert await server.tenant_of_key("h1") == ALICE
    await command_line.revoke_api_key("h1", 2.0)
    await asyncio.sleep(0.3)
    with pytest.raises(Unauthorized):
        await server.tenant_of_key("h1")
    assert await server.tenant_of_key("h2") == BOB
    await server.close()
    await command_line.close()


async def test_values_that_no_column_takes_fail_alone(tmp_path: Path):
    store = await create_store(url_in(tmp_path), MemoryBlobs())
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


async def test_when_payloads_cannot_be_written_only_their_requests_fail(tmp_path: Path):
    blobs = DirectoryBlobs(tmp_path / "blobs", pack_bytes=1)
    store = await create_store(url_in(tmp_path), blobs)
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


async def test_a_caller_that_goes_away_does_not_take_its_neighbours_with_it(tmp_path: Path):
    store = await create_store(url_in(tmp_path), MemoryBlobs())
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

async def main(root):
    store = await create_store(f"sqlite:///{root}/store.db", DirectoryBlobs(root / "blobs", pack_bytes=20_000))
    await asyncio.gather(*(caller(store, f"r{n}") for n in range(16)))

asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.mark.parametrize("num_acknowledged", [5, 400])
async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path, num_acknowledged: int):
    command = [sys.executable, "-c", ENQUEUE_UNTIL_KILLED, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(num_acknowledged)]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.readlines()
    acknowledged = [line.split() for line in lines if line.endswith("\n")]
    assert len(acknowledged) >= num_acknowledged
    blobs = DirectoryBlobs(tmp_path / "blobs")
    store = await create_store(url_in(tmp_path), blobs)
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
