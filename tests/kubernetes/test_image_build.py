"""The slim image, built as it is written over a Debian root without a registry, and run as Kubernetes runs it.

By runc: read-only root, no capabilities, no new privileges, user 10001, /tmp and /var/lib/openrl in memory.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kubernetes.chart import ROOT
from tests.postgres import PostgresServer, free_port, new_database

MIRROR = "http://deb.debian.org/debian"
PACKAGES = "python3,python3-venv,python3-dev,ca-certificates"
BASE_DIR = "OPENRL_IMAGE_BASE"
"""Variable with a directory that debootstrap has made, with PACKAGES: saves minutes."""
SETTINGS = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
events_logger = "file"
"""
ENVIRONMENT = {"PATH": "/opt/openrl/bin:/usr/bin:/bin", "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"}
"""What the image sets."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@dataclass(frozen=True, slots=True)
class Buildah:
    """A store of images of its own."""

    directory: Path

    def command(self, *arguments: str) -> list[str]:
        return ["buildah", "--root", f"{self.directory}/root", "--runroot", f"{self.directory}/run", *arguments]

    def __call__(self, *arguments: str) -> str:
        """Run a command to its end; returns what it says."""
        settings = {"CONTAINERS_CONF": f"{self.directory}/containers.conf"}
        done = subprocess.run(
            self.command(*arguments),
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.strip()


@dataclass(frozen=True, slots=True)
class Container:
    """The image's root, with the host's network."""

    directory: Path
    root: str

    def command(self, settings: dict[str, str], *arguments: str, mounts: dict[str, Path] | None = None) -> list[str]:
        """What runs it; a signal to that process reaches the program, and its status is the program's."""
        bundle = Path(tempfile.mkdtemp(dir=self.directory))
        subprocess.run(["runc", "spec", "--bundle", str(bundle)], check=True)
        spec = json.loads((bundle / "config.json").read_text())
        spec["root"] = {"path": self.root, "readonly": True}
        spec["process"] |= {
            "terminal": False,
            "user": {"uid": 10001, "gid": 10001},
            "args": arguments,
            "env": [f"{name}={value}" for name, value in (ENVIRONMENT | settings).items()],
            "cwd": "/var/lib/openrl",
            "capabilities": {},
            "noNewPrivileges": True,
        }
        own = [each for each in spec["linux"]["namespaces"] if each["type"] != "network"]
        spec["linux"]["namespaces"] = own
        for target in ("/tmp", "/var/lib/openrl"):
            spec["mounts"].append({"destination": target, "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]})
        for target, source in (mounts or {}).items():
            bind = {"destination": target, "type": "bind", "source": str(source), "options": ["rbind", "ro"]}
            spec["mounts"].append(bind)
        (bundle / "config.json").write_text(json.dumps(spec))
        return ["runc", "--root", f"{self.directory}/runc", "run", "--bundle", str(bundle), bundle.name]

    def run(self, *arguments: str, settings: dict[str, str] | None = None) -> str:
        done = subprocess.run(self.command(settings or {}, *arguments), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.strip()


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    if os.geteuid() != 0 or not shutil.which("buildah") or not shutil.which("runc"):
        pytest.skip("needs root and the Debian packages buildah and runc")
    directory = tmp_path_factory.mktemp("images")
    buildah = Buildah(directory)
    (directory / "containers.conf").write_text(SETTINGS)
    root = Path(os.environ.get(BASE_DIR) or _debian_root(directory / "debian"))
    subprocess.run(["tar", "-C", str(root), "-cf", str(directory / "base.tar"), "."], check=True)
    empty = buildah("from", "--pull-never", "scratch")
    buildah("add", empty, str(directory / "base.tar"), "/")
    buildah("commit", "--quiet", "--rm", empty, "openrl-base")
    images = "deploy/images"
    buildah(
        *("bud", "--isolation", "chroot", "--ulimit", "nofile=1024:1024", "--pull-never", "--layers=false"),
        *("--build-arg", "BASE=localhost/openrl-base", "--volume", "/etc/ssl/certs:/etc/ssl/certs:ro"),
        *("--ignorefile", f"{images}/Dockerfile.dockerignore", "-f", f"{images}/Dockerfile", "-t", "openrl:test", "."),
    )
    made = buildah("from", "--pull-never", "openrl:test")
    yield Container(directory, buildah("mount", made))
    buildah("rm", "--all")
    buildah("rmi", "--all", "--force")


def _debian_root(target: Path) -> Path:
    if shutil.which("debootstrap") is None:
        pytest.skip(f"needs the Debian package debootstrap, or {BASE_DIR}")
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(target), MIRROR]
    subprocess.run(command, check=True, capture_output=True)
    return target


def test_it_runs_as_nobody_and_cannot_change_itself(container: Container):
    assert container.run("id", "-u") == "10001"
    status = container.run("cat", "/proc/self/status")
    assert set(re.findall(r"^Cap\w+:\t(\w+)$", status, re.MULTILINE)) == {"0" * 16}
    assert "Read-only file system" in container.run("sh", "-c", "touch /var/mine 2>&1 || :")
    changed = container.run("sh", "-c", "find /opt /usr /etc -xdev -perm /022 -not -type l | head -3")
    assert changed == ""


def test_it_has_what_jobs_use_and_no_engine(container: Container):
    assert container.run("openrl", "version")
    container.run("hf", "version")
    container.run("openrl", "models", "list")
    container.run("python", "-c", "import tinker")
    assert container.run("python", "-c", "import importlib.util as u; print(u.find_spec('torch'))") == "None"


def test_its_bill_of_materials_names_what_is_installed(container: Container):
    bill = json.loads(container.run("cat", "/usr/share/sbom/openrl.cdx.json"))
    assert bill["bomFormat"] == "CycloneDX"
    assert {"openrl", "tinker", "sqlalchemy", "obstore"} <= {each["name"].lower() for each in bill["components"]}


def test_its_programs_migrate_schedule_and_answer(container: Container, postgres: PostgresServer, tmp_path: Path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"vocab_size": 8, "max_position_embeddings": 8}))
    for path in (tmp_path, *tmp_path.parents[:2], model):
        path.chmod(0o755)
    ports = [free_port() for _ in range(3)]
    settings = {
        "OPENRL_STORE__URL": new_database(postgres),
        "OPENRL_DATA_DIR": "/tmp/openrl",
        "OPENRL_SCHEDULER__HTTP_ADDRESS": f"127.0.0.1:{ports[0]}",
        "OPENRL_RPC__ADDRESS": f"tcp:127.0.0.1:{ports[1]}",
        "OPENRL_GATEWAY__PORT": str(ports[2]),
    }
    assert "schema" in container.run("openrl", "migrate", settings=settings)
    programs = (("openrl", "scheduler"), ("openrl", "gateway", "--model", "tiny=/cache"))
    commands = [container.command(settings, *program, mounts={"/cache": model}) for program in programs]
    running = [subprocess.Popen(command, start_new_session=True) for command in commands]
    try:
        for port in (ports[0], ports[2]):
            wait_for(f"http://127.0.0.1:{port}/livez", running)
        for process in running:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(60) for process in running] == [0, 0]
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(url: str, running: list["subprocess.Popen[bytes]"]) -> None:
    """Until it answers 200, within two minutes; fails when a process has ended."""
    end = time.monotonic() + 120
    while True:
        assert all(process.poll() is None for process in running)
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                assert reply.status == 200
                return
        except urllib.error.URLError:
            assert time.monotonic() < end, url
            time.sleep(0.2)
