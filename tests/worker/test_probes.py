"""What a worker's probes say while it loads, works, is drained, hangs."""

import urllib.error
import urllib.request
from dataclasses import dataclass

import pytest
from pydantic import ValidationError

from openrl.config import WorkerConfig
from openrl.errors import Unavailable
from openrl.telemetry.metrics import create_metrics
from openrl.worker.probes import serve_probes


@dataclass
class Subject:
    started: bool = False
    ready: bool = False
    stillness: float = 0.0
    num_drains: int = 0

    def is_started(self) -> bool:
        return self.started

    def is_ready(self) -> bool:
        return self.ready

    def stillness_s(self) -> float:
        return self.stillness

    def ask_to_drain(self) -> None:
        self.num_drains += 1


def get(url: str, data: bytes | None = None) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_each_probe_asks_for_one_thing():
    subject = Subject()
    with serve_probes("127.0.0.1:0", subject, create_metrics(), longest_step_s=900.0) as url:
        assert [get(f"{url}/{name}")[0] for name in ("startupz", "readyz", "livez")] == [503, 503, 200]
        subject.started = True
        assert [get(f"{url}/{name}")[0] for name in ("startupz", "readyz", "livez")] == [200, 503, 200]
        subject.ready = True
        assert [get(f"{url}/{name}")[0] for name in ("startupz", "readyz", "livez")] == [200, 200, 200]
        subject.stillness = 899.0
        assert get(f"{url}/livez")[0] == 200
        subject.stillness = 901.0
        assert get(f"{url}/livez") == (503, "has not moved for 901 s\n")
        assert get(f"{url}/readyz?verbose")[0] == 200
        assert "openrl_worker_busy_seconds" in get(f"{url}/metrics")[1]
        assert [get(f"{url}/other")[0], get(f"{url}/readyz", b"")[0]] == [404, 404]


def test_draining_can_be_asked_for_by_both_methods():
    subject = Subject()
    with serve_probes("127.0.0.1:0", subject, create_metrics(), 900.0) as url:
        assert get(f"{url}/drain")[0] == get(f"{url}/drain", b"")[0] == 200
    assert subject.num_drains == 2


def test_an_address_that_is_taken_or_none_is_said_so():
    with serve_probes("127.0.0.1:0", Subject(), create_metrics(), 900.0) as url:
        address = url.removeprefix("http://")
        with pytest.raises(Unavailable, match=f"cannot listen for probes on {address}"):
            serve_probes(address, Subject(), create_metrics(), 900.0).__enter__()
    with pytest.raises(ValidationError, match="'9090' is not host:port"):
        WorkerConfig(http_address="9090")
    with serve_probes("", Subject(), create_metrics(), 900.0) as url:
        assert url == ""
