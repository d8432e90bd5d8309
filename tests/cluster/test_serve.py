"""`openrl serve` over PostgreSQL: one command, and a standby for another one."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from openrl.cli.credentials import have_secret
from tests.contracts.loops import connect, new_run, train
from tests.live_server import LiveServer, openrl, start_server
from tests.postgres import PostgresServer, new_database


@pytest.fixture
def servers(tiny_model_dir: Path, postgres: PostgresServer, tmp_path: Path) -> Iterator[list[LiveServer]]:
    """Two, with a data directory each and files in common."""
    config = tmp_path / "openrl.toml"
    secret = tmp_path / "secret"
    have_secret(None, secret)
    config.write_text(
        f"""
        [store]
        url = "{new_database(postgres)}"
        blobs_url = "file://{tmp_path}/blobs"
        [gateway]
        secret_file = "{secret}"
        [scheduler]
        lease_s = 4
        """
    )
    with ExitStack() as stack:
        started: list[LiveServer] = []
        for name in ("first", "second"):
            started.append(start_server(tiny_model_dir, tmp_path / name, "--config", str(config)))
            stack.callback(started[-1].kill)
        yield started


@pytest.mark.slow
def test_a_second_server_over_the_same_database_stands_by_and_takes_over(servers: list[LiveServer]):
    first, second = servers
    key = first.key
    with connect(second.url, key) as service:
        expected = train(new_run(service), 4)
        run = new_run(service)
        got = train(run, 2)
        assert first.worker_pids
        assert not second.worker_pids
        first.kill()
        assert got + train(run, 2, first=2) == expected
        assert second.worker_pids
    assert second.stop() == 0


def test_processes_of_their_own_need_a_database_that_can_be_shared(tiny_model_dir: Path, tmp_path: Path):
    for command in (("scheduler",), ("gateway", "--model", f"x={tiny_model_dir}", "--port", "0")):
        ended = openrl(*command, "--data-dir", str(tmp_path))
        assert ended.returncode == 1
        assert "set store.url to postgresql://" in ended.stderr
