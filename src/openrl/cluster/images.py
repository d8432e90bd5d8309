"""What container images would do: their entry points and variables, as this machine has them."""

import os
import pwd
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from openrl.cluster.pod_spec import Container
from openrl.errors import InvalidRequest

POSTGRES_BINARIES = Path("/usr/lib/postgresql")
PASSED_ON = (
    "LANG",
    "LC_ALL",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "HF_HOME",
    "TMPDIR",
)
OPENRL = (sys.executable, "-c", "from openrl.cli.main import main; main()")
_POSTGRES_ENTRY = """
set -eu
data="${PGDATA:-/var/lib/postgresql/data}"
if [ ! -s "$data/PG_VERSION" ]; then
    mkdir -p "$data"
    chmod 0700 "$data"
    password="$(mktemp)"
    printf '%s' "${POSTGRES_PASSWORD:-}" >"$password"
    initdb -D "$data" -U "${POSTGRES_USER:-postgres}" -A scram-sha-256 --pwfile="$password" -E UTF8 >/dev/null
    rm "$password"
    echo "host all all all scram-sha-256" >>"$data/pg_hba.conf"
    if [ "${POSTGRES_DB:-postgres}" != postgres ]; then
        echo "CREATE DATABASE \\"$POSTGRES_DB\\"" |
            postgres --single -D "$data" postgres >/dev/null
    fi
fi
exec "$@" -D "$data" -c listen_addresses=0.0.0.0 -c unix_socket_directories=
"""
"""What the image `postgres` does before it starts its server."""


def image_environment(outside: Mapping[str, str]) -> dict[str, str]:
    """Variables that an image would set: where programs are. Nothing of `outside` else gets in."""
    folders = [str(Path(sys.executable).parent), *_postgres_folders(), outside.get("PATH", os.defpath)]
    kept = {
        name: value for name, value in outside.items() if name in PASSED_ON or name.startswith(("CUDA_", "NVIDIA_"))
    }
    return {"PATH": ":".join(folders), "HOME": "/tmp", **kept}  # noqa: S108  (of the container)


def command_of(container: Container) -> tuple[str, ...]:
    """Command and arguments, with the image's entry point where the manifest gives no command."""
    name = image_name(container.image)
    given = (*container.command, *container.args)
    if name == "postgres" and (not container.command or given[0] in ("postgres", "docker-entrypoint.sh")):
        server = [word for word in given if word not in ("postgres", "docker-entrypoint.sh")]
        return ("sh", "-c", _POSTGRES_ENTRY, "postgres", "postgres", *server)
    if container.command and container.command[0] not in ("openrl", "/usr/bin/openrl"):
        return _with_our_python(given)
    words = given[1:] if container.command else given
    if not words:
        raise InvalidRequest(f"container {container.name!r} gives neither command nor args", value=container.image)
    return (*OPENRL, *words)


def image_name(image: str) -> str:
    """Without registry, tag and digest."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0]


def stop_signal(container: Container) -> signal.Signals:
    """What asks the program to end. PostgreSQL's SIGTERM would wait until all clients have gone."""
    return signal.SIGINT if image_name(container.image) == "postgres" else signal.SIGTERM


def runs_as_root(container: Container) -> bool:
    """Whether the program may run as root; PostgreSQL refuses to."""
    return image_name(container.image) != "postgres"


def known_user(user: int) -> int:
    """The same where this machine has such a user; else one without rights. Programs want to know their user's name."""
    try:
        return pwd.getpwuid(user).pw_uid
    except KeyError:
        return pwd.getpwnam("nobody").pw_uid


def _with_our_python(command: tuple[str, ...]) -> tuple[str, ...]:
    return (sys.executable, *command[1:]) if command[0] in ("python", "python3") else command


def _postgres_folders() -> list[str]:
    return [str(path) for path in sorted(POSTGRES_BINARIES.glob("*/bin"), reverse=True)]
