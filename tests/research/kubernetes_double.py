"""The calls of the Kubernetes API that studies make, over Jobs whose containers are processes of this machine.

Volumes are left out: paths in the pod are those of this machine. What a Job asks for beside its command is kept for
tests to look at.
"""

import json
import os
import re
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]
NAMESPACE = "prod"
TOKEN = "t1"
JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
_PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


@dataclass
class Pod:
    """One that runs, or has."""

    job: Object
    process: subprocess.Popen[bytes]
    output: Path

    def status(self) -> Object:
        code = self.process.poll()
        state = {"running": {}} if code is None else {"terminated": {"exitCode": code, "reason": "Error"}}
        return {"containerStatuses": [{"name": "attempt", "state": state}]}


@dataclass
class Cluster:
    """Jobs of one namespace; without a queue they start at once, with one when `admit` is called."""

    directory: Path
    secrets: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    url: str = ""
    created: list[Object] = field(default_factory=list[Object])
    jobs: dict[str, Object] = field(default_factory=dict[str, Object])
    pods: dict[str, Pod] = field(default_factory=dict[str, Pod])
    lost_replies: int = 0  # this many creations happen and get no good answer
    _lock: Lock = field(default_factory=Lock)

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> tuple[int, Object | str]:
        url = urlsplit(path)
        name = url.path.removeprefix(JOBS).removeprefix(_PODS).strip("/")
        if token != f"Bearer {TOKEN}":
            return _failure(401, "Unauthorized")
        with self._lock:
            match method, url.path.removesuffix(name).rstrip("/"):
                case "POST", _ if url.path == JOBS:
                    return self._create(json.loads(body))
                case "GET", _ if url.path == JOBS:
                    return 200, {"items": list(self.jobs.values())}
                case "GET", _ if url.path == _PODS:
                    return 200, {"items": self._selected(parse_qs(url.query)["labelSelector"][0])}
                case "GET", place if place == _PODS and name.endswith("/log"):
                    return 200, self.pods[name.removesuffix("/log")].output.read_text()
                case "GET", place if place == JOBS:
                    return (200, self._seen(name)) if name in self.jobs else _failure(404, "NotFound")
                case "DELETE", place if place == JOBS:
                    return self._delete(name)
                case _:
                    return _failure(403, "Forbidden")

    def admit(self) -> None:
        """As Kueue does it."""
        with self._lock:
            for name, job in self.jobs.items():
                if job["spec"].pop("suspend", False):
                    self._start(name, job)

    def close(self) -> None:
        for pod in self.pods.values():
            pod.process.kill()
            pod.process.wait()

    def _create(self, job: Object) -> tuple[int, Object]:
        name = job["metadata"]["name"]
        if name in self.jobs:
            return _failure(409, "AlreadyExists")
        self.created.append(json.loads(json.dumps(job)))
        self.jobs[name] = job
        if not job["spec"].get("suspend"):
            self._start(name, job)
        if self.lost_replies:
            self.lost_replies -= 1
            return _failure(504, "Timeout")
        return 201, job

    def _start(self, name: str, job: Object) -> None:
        (container,) = job["spec"]["template"]["spec"]["containers"]
        given = {each["name"]: self._value(each) for each in container["env"]}
        output = self.directory / f"{name}.log"
        with output.open("wb") as log:
            process = subprocess.Popen(
                container["command"], cwd=container["workingDir"], stdout=log, stderr=log,
                env={"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", **given},
            )  # fmt: skip
        self.pods[f"{name}-x"] = Pod(job, process, output)

    def _value(self, variable: Object) -> str:
        if "valueFrom" in variable:
            key = variable["valueFrom"]["secretKeyRef"]
            return self.secrets[key["name"], key["key"]]
        return variable["value"]

    def _seen(self, name: str) -> Object:
        pod = self.pods.get(f"{name}-x")
        code = None if pod is None else pod.process.poll()
        status: Object = {"ready": int(pod is not None and code is None)}
        if code is not None:
            status["conditions"] = [{"type": "Failed" if code else "Complete", "status": "True", "message": "backoff"}]
        return {**self.jobs[name], "status": status}

    def _selected(self, selector: str) -> list[Object]:
        name = re.fullmatch(r"batch\.kubernetes\.io/job-name=(.+)", selector)
        assert name is not None
        found = self.pods.get(f"{name[1]}-x")
        meta = {"name": f"{name[1]}-x", "creationTimestamp": "2026-01-01T00:00:00Z"}
        return [] if found is None else [{"metadata": meta, "status": found.status()}]

    def _delete(self, name: str) -> tuple[int, Object]:
        if self.jobs.pop(name, None) is None:
            return _failure(404, "NotFound")
        if pod := self.pods.pop(f"{name}-x", None):
            pod.process.kill()
            pod.process.wait()
        return 200, {"kind": "Status", "status": "Success"}


def _failure(code: int, reason: str) -> tuple[int, Object]:
    return code, {"kind": "Status", "status": "Failure", "reason": reason, "code": code}


@contextmanager
def running_cluster(directory: Path) -> Generator[Cluster]:
    """Serves it; `directory` gets the credentials of a service account and the logs."""
    directory.mkdir()
    (directory / "token").write_text(TOKEN)
    (directory / "namespace").write_text(NAMESPACE)
    cluster = Cluster(directory)

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, said = cluster.answer(self.command, self.path, self.headers["Authorization"], body)
            content = (said if isinstance(said, str) else json.dumps(said)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = _reply

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        cluster.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield cluster
        finally:
            server.shutdown()
            thread.join()
            cluster.close()
