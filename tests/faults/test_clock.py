"""The machine's clock jumps by an hour: sessions, results and checkpoints live on."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.crash_serve import ServeInstallation

from tests.contracts.conftest import http_client
from tests.contracts.loops import batch, connect, new_run, numbers, resume, train
from tests.contracts.raw_api import RawApi
from tests.live_server import environment

HOUR_S = 3600
CONFIG = """
[gateway]
session_timeout_s = 30
[store]
result_retention_s = 1800
"""
TWO_SWEEPS_S = 130.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def library() -> Path:
    """Debian's libfaketime: the time that a process is told is that in a file."""
    found = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if found is None:
        pytest.skip("needs the Debian package libfaketime")
    return found


@pytest.fixture
def installation(tiny_model_dir: Path, tmp_path: Path, library: Path) -> Iterator[ServeInstallation]:
    (tmp_path / "time").write_text("+0")
    faked = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(tmp_path / "time"),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    running = ServeInstallation(tiny_model_dir, tmp_path, config=CONFIG, environment={**environment(), **faked})
    yield running
    running.destroy()


# 32, 38
def test_a_clock_that_jumps_by_an_hour_ends_nothing(installation: ServeInstallation, tmp_path: Path):
    installation.start()
    url, key = installation.url, installation.keys["default"]
    with connect(url, key) as service, http_client(url, key) as http:
        run, undisturbed = new_run(service), new_run(service)
        path = run.save_state("kept").result().path
        raw = RawApi(http)
        session = raw.new_session()  # nobody lets the server know that it lives
        first = raw.submit_backward(undisturbed.model_id, 1, batch(3))
        passed = raw.output(first)
        got = [train(run, 1)]
        for ahead_s in (HOUR_S, 0, -HOUR_S):
            (tmp_path / "time").write_text(f"{ahead_s:+d}")
            until = time.monotonic() + TWO_SWEEPS_S
            while time.monotonic() < until:
                got.append(train(run, 1, first=len(got)))
                time.sleep(3.0)
        assert numbers(raw.output(first)) == numbers(passed) == got[0][0].passed
        assert raw.submit_step(undisturbed.model_id, 2)
        assert run.save_state("later").result()
        twin = new_run(service)
        assert [train(twin, 1, first=i) for i in range(len(got))] == got
        assert train(resume(service, path), 1) == train(new_run(service), 1)
        assert http.post("session_heartbeat", json={"session_id": session}).status_code == 410
    installation.stop()
