"""Troubles that end by themselves: clients see delay, nothing is lost, and no number changes.

Each test compares clients at work in trouble with a twin that has none.
"""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from bench.crash_serve import ServeInstallation

from openrl.store.base import Blobs
from openrl.store.open_blobs import open_blobs
from tests.chaos_proxy import ChaosProxy, Mode
from tests.faults.loads import TROUBLE_S, expect_only_delay
from tests.live_server import environment
from tests.s3_server import Bucket

Twins = tuple[ServeInstallation, ServeInstallation]
DISK_BYTES = 96 * 2**20

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def twins(tiny_model_dir: Path, tmp_path: Path) -> Twins:
    return ServeInstallation(tiny_model_dir, tmp_path / "troubled"), ServeInstallation(
        tiny_model_dir, tmp_path / "twin"
    )


# 41
def test_a_server_that_is_told_to_stop_hands_over_what_runs(twins: Twins):
    def stop_and_start(installation: ServeInstallation) -> None:
        for _ in range(2):
            started = time.monotonic()
            installation.stop()
            assert time.monotonic() - started < 45.0
            installation.start()

    expect_only_delay(*twins, stop_and_start)


# 38
def test_a_worker_that_stands_still_for_a_while(twins: Twins):
    def pause(installation: ServeInstallation) -> None:
        [worker] = installation.workers()
        os.kill(worker, signal.SIGSTOP)
        time.sleep(TROUBLE_S)
        os.kill(worker, signal.SIGCONT)

    expect_only_delay(*twins, pause)


# 39
def test_a_full_disk(twins: Twins):
    with disk_of(twins[0]) as fill:

        def run_full(_: ServeInstallation) -> None:
            with fill():
                time.sleep(TROUBLE_S)

        expect_only_delay(*twins, run_full)


@contextmanager
def disk_of(installation: ServeInstallation) -> Generator[Callable[[], AbstractContextManager[None]]]:
    """Gives the installation, its log included, a disk that can be filled."""
    disk = installation.disk = installation.home / "disk"
    disk.mkdir(parents=True)
    mounting = ("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk))
    if subprocess.run(mounting, capture_output=True, check=False).returncode:
        yield lambda: no_file_grows(installation)
        return
    try:
        yield lambda: ballast(disk / "ballast")
    finally:
        subprocess.run(("umount", "--lazy", str(disk)), check=True)


@contextmanager
def ballast(file: Path) -> Generator[None]:
    """Not a byte is free."""
    with file.open("wb", buffering=0) as out:
        for size in (2**20, 2**12, 1):
            with suppress(OSError):
                while True:
                    out.write(b"x" * size)
    yield
    file.unlink()


@contextmanager
def no_file_grows(installation: ServeInstallation) -> Generator[None]:
    """What a user who may not mount can do: writes past the first byte of a file fail."""
    pids = installation.processes()
    old = [resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids]
    for pid, (_, hard) in zip(pids, old, strict=True):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, hard))
    yield
    for pid, limits in zip(pids, old, strict=True):
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


@dataclass(slots=True)
class BucketInstallation(ServeInstallation):
    """Its files are in a bucket."""

    bucket: Bucket | None = None

    def open_blobs(self) -> Blobs:
        assert self.bucket is not None
        return open_blobs(self.bucket.config(), self.home / "cache")

    def drafts(self) -> list[str]:
        return []


# 39
def test_an_object_store_that_is_slow_silent_or_away(
    tiny_model_dir: Path, tmp_path: Path, twins: Twins, bucket: Bucket
):
    address = urlsplit(bucket.endpoint)
    assert address.hostname is not None
    assert address.port is not None
    proxy = ChaosProxy(address.hostname, address.port)
    proxy.start()

    def be(mode: Mode) -> Callable[[ServeInstallation], None]:
        def trouble(_: ServeInstallation) -> None:
            proxy.set(mode, delay_s=0.3)
            time.sleep(TROUBLE_S)
            proxy.set("pass")

        return trouble

    settings = bucket.config(f"http://127.0.0.1:{proxy.port}")
    given = {"OPENRL_STORE__BLOBS_URL": settings.blobs_url, "OPENRL_STORE__S3_ENDPOINT": settings.s3_endpoint}
    home = tmp_path / "in-a-bucket"
    troubled = BucketInstallation(tiny_model_dir, home, environment={**environment(), **given}, bucket=bucket)
    expect_only_delay(troubled, twins[1], be("delay"), be("hang"), be("cut"))
    proxy.stop()
