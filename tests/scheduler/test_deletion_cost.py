"""Pods learn what deleting them costs, from a server that speaks the Kubernetes API's one call."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from openrl.config import SchedulerConfig
from openrl.errors import Unavailable
from openrl.scheduler.deletion_cost import ANNOTATION, DeletionCosts, PodApi, deletion_cost
from openrl.store.cluster import WorkerStatus

IDLE = WorkerStatus("pod-0", "default", "both", ("tiny",), "working", 0, 0)


@dataclass
class FakeApi:
    """Pods of one namespace; others, other tokens and other calls are refused as the real server does it."""

    url: str = ""
    pods: dict[str, dict[str, str]] = field(default_factory=lambda: {"pod-0": {"mine": "1"}, "pod-1": {}})
    token: str = "t1"
    calls: list[str] = field(default_factory=list[str])

    def patch(self, path: str, token: str, kind: str, body: bytes) -> tuple[int, object]:
        self.calls.append(path)
        folder, _, pod = path.rpartition("/")
        if token != f"Bearer {self.token}":
            return 401, {"kind": "Status", "reason": "Unauthorized"}
        if folder != "/api/v1/namespaces/prod/pods":
            return 403, {"kind": "Status", "reason": "Forbidden"}
        if kind != "application/merge-patch+json":
            return 415, {"kind": "Status", "reason": "UnsupportedMediaType"}
        if pod not in self.pods:
            return 404, {"kind": "Status", "reason": "NotFound"}
        self.pods[pod].update(json.loads(body)["metadata"]["annotations"])
        return 200, {"kind": "Pod", "metadata": {"name": pod, "annotations": self.pods[pod]}}

    def costs(self) -> list[str | None]:
        return [self.pods[pod].get(ANNOTATION) for pod in sorted(self.pods)]


@pytest.fixture
def kubernetes() -> Iterator[FakeApi]:
    fake = FakeApi()

    class Handler(BaseHTTPRequestHandler):
        def do_PATCH(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = self.headers
            status, reply = fake.patch(self.path, headers["Authorization"], headers["Content-Type"], body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        fake.url = f"http://127.0.0.1:{server.server_port}"
        yield fake
        server.shutdown()
        thread.join()


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("t1\n")
    (tmp_path / "namespace").write_text("prod")
    return tmp_path


def test_idle_workers_cost_nothing_and_the_fullest_most():
    assert deletion_cost(IDLE) == 0
    costs = [deletion_cost(replace(IDLE, num_runs=n, num_requests=m)) for n, m in ((0, 9), (1, 0), (1, 1), (7, 0))]
    assert costs == sorted(set(costs))
    assert costs[0] > 0
    assert deletion_cost(replace(IDLE, num_runs=10**9)) < 2**31


async def test_pods_are_told_only_what_changed(kubernetes: FakeApi, account: Path):
    workers = [IDLE, replace(IDLE, name="pod-1", num_runs=2), replace(IDLE, name="not-a-pod")]
    costs = DeletionCosts(PodApi(kubernetes.url, account), lambda: workers)
    await costs.tell()
    assert kubernetes.costs() == ["0", "200"]
    assert kubernetes.pods["pod-0"]["mine"] == "1"
    assert len(kubernetes.calls) == 3
    workers[0] = replace(IDLE, num_requests=3)
    await costs.tell()
    await costs.tell()
    assert kubernetes.costs() == ["50", "200"]
    assert len(kubernetes.calls) == 4


async def test_what_fails_is_tried_again_and_a_renewed_token_is_read(kubernetes: FakeApi, account: Path):
    costs = DeletionCosts(PodApi(kubernetes.url, account), lambda: [IDLE])
    kubernetes.token = "t2"
    await costs.tell()
    assert kubernetes.costs() == [None, None]
    (account / "token").write_text("t2")
    await costs.tell()
    assert kubernetes.costs() == ["0", None]


async def test_no_answer_is_said_so(account: Path):
    api = PodApi("http://127.0.0.1:1", account)
    with pytest.raises(Unavailable, match="does not answer"):
        await asyncio.to_thread(api.annotate, "pod-0", ANNOTATION, "0")
    missing = PodApi("http://127.0.0.1:1", account / "missing")
    with pytest.raises(Unavailable, match=r"has no namespace.*missing"):
        await asyncio.to_thread(missing.annotate, "pod-0", ANNOTATION, "0")


def test_it_is_off_unless_wanted():
    assert not SchedulerConfig().patch_deletion_cost
