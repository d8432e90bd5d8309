"""A PostgreSQL server of the tests' own, with its data in a temporary directory."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psycopg

BINARIES = Path("/usr/lib/postgresql")
UNIX_USER = "nobody"
"""PostgreSQL refuses to run as root."""
MISSING = "PostgreSQL is not installed: run scripts/postgres.sh as root, or install the package that has `initdb`"
START_TIMEOUT_S = 60.0
LOCALE = ("--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US")
"""Not the order of bytes, as on most servers."""
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "300",
    "fsync": "on",
    "synchronous_commit": "on",
    "log_min_messages": "warning",
}


@dataclass(slots=True)
class PostgresServer:
    """A running server. Its port stays the same over restarts."""

    binaries: Path
    data: Path
    port: int
    log: IO[bytes]
    process: "subprocess.Popen[Any]"

    @property
    def url(self) -> str:
        """Of the database that is always there."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """What `store.url` takes."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def stop(self) -> None:
        """End the server in good order, and delete its data."""
        self._end(signal.SIGINT)
        self.log.close()
        shutil.rmtree(self.data)

    def restart(self) -> None:
        """Disconnect all clients, and come back with the same data."""
        self._end(signal.SIGINT)
        self.start()

    def kill(self) -> None:
        """End at once, as in a power cut; `start` recovers the data."""
        self._end(signal.SIGQUIT)

    def start(self) -> None:
        """Run the server again after `kill`."""
        self.process = _run_server(self.binaries, self.data, self.port, self.log)
        wait_until_ready(self)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement outside of any transaction; returns its rows."""
        with psycopg.connect(self.url_of(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def disconnect_all(self, database: str) -> None:
        """Cut every connection to a database."""
        self.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")

    def _end(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        self.process.wait(START_TIMEOUT_S)


def start_postgres(directory: Path) -> PostgresServer:
    """Make a database cluster and run it; the server's log is a file in `directory`.

    The data lies elsewhere: only this user may enter what pytest makes.
    """
    binaries = find_binaries()
    data = Path(tempfile.mkdtemp(prefix="openrl-postgres-"))
    options = _as_other_user()
    if options:
        shutil.chown(data, UNIX_USER)
    command = [binaries / "initdb", "-D", data / "pg", "-U", "postgres", "-A", "trust", "-E", "UTF8", *LOCALE]
    subprocess.run(command, check=True, capture_output=True, cwd="/", **options)
    log = (directory / "postgres.log").open("ab")
    port = free_port()
    server = PostgresServer(binaries, data, port, log, _run_server(binaries, data, port, log))
    wait_until_ready(server)
    return server


def new_database(server: PostgresServer) -> str:
    """The URL of a fresh database."""
    name = f"test_{uuid.uuid4().hex}"
    server.execute(f"CREATE DATABASE {name}")
    return server.url_of(name)


def find_binaries() -> Path:
    """Where the newest installed server is; raises with what to do if there is none."""
    found = sorted(BINARIES.glob("*/bin"), key=lambda path: int(path.parent.name))
    on_path = shutil.which("initdb")
    if not found and on_path is None:
        raise RuntimeError(MISSING)
    return found[-1] if found else Path(str(on_path)).resolve().parent


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(server: PostgresServer) -> None:
    """Return once the server takes connections."""
    deadline = time.monotonic() + START_TIMEOUT_S
    probe = [server.binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(server.port)]
    while subprocess.run(probe, check=False).returncode != 0:
        if server.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"PostgreSQL does not start (status {server.process.poll()}); see {server.log.name}")


def _run_server(binaries: Path, data: Path, port: int, log: IO[bytes]) -> "subprocess.Popen[Any]":
    settings = [f"-c{name}={value}" for name, value in SETTINGS.items()]
    command = [binaries / "postgres", "-D", data / "pg", "-p", str(port), "-k", data, *settings]
    return subprocess.Popen(command, stdout=log, stderr=log, cwd="/", start_new_session=True, **_as_other_user())


def _as_other_user() -> dict[str, Any]:
    return {"user": UNIX_USER, "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
