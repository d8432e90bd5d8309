"""Runs attempts as Kubernetes Jobs, which go on while no runner is there and are found again by their names."""

import asyncio
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlencode

from openrl.errors import InvalidRequest, OpenRLError, Unavailable
from openrl.kubernetes import IN_CLUSTER_URL, KubernetesApi, Reply
from openrl.research.job import CONTAINER, STUDY_LABEL, JobOf, KubernetesConfig, job_name, render_job
from openrl.research.study import Study
from openrl.telemetry.logs import get_logger

P = ParamSpec("P")
R = TypeVar("R")
_log = get_logger(__name__)
_LOOK_S = 2.0  # between looks at a Job
_TRIES = 5  # at starting or ending one, a look apart
_LOG_LINES = 20_000
_GONE = 1  # exit status where no container tells one
_ID_FILE = "launch-id"


def launch_id(directory: Path, is_new: bool) -> str:
    """Part of the names of a study's Jobs, so that one that begins anew does not find those of before."""
    file = directory / "attempts" / _ID_FILE
    if is_new or not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(uuid.uuid4().hex[:8])
    return file.read_text()


class JobsApi:
    """The calls about Jobs of one namespace; blocking."""

    def __init__(self, api: KubernetesApi, namespace: str) -> None:
        self._api = api
        self._jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self._pods = f"/api/v1/namespaces/{namespace}/pods"

    def check(self, study: str) -> None:
        """Raises InvalidRequest where the namespace or the right to see Jobs lacks."""
        query = urlencode({"labelSelector": f"{STUDY_LABEL}={study.rstrip('-')}", "limit": 1})
        _accept(self._api.send("GET", f"{self._jobs}?{query}"), 200)

    def create(self, job: Mapping[str, Any]) -> None:
        """One that is there stays as it is."""
        _accept(self._api.send("POST", self._jobs, job), 201, 409)

    def get(self, name: str) -> dict[str, Any] | None:
        reply = _accept(self._api.send("GET", f"{self._jobs}/{name}"), 200, 404)
        return reply.object if reply.status == 200 else None

    def delete(self, name: str) -> None:
        """With its pod, which gets SIGTERM."""
        _accept(self._api.send("DELETE", f"{self._jobs}/{name}?propagationPolicy=Background"), 200, 202, 404)

    def last_pod(self, name: str) -> dict[str, Any] | None:
        """Of a Job; it has several where the cluster took some away."""
        query = urlencode({"labelSelector": f"batch.kubernetes.io/job-name={name}"})
        pods = _accept(self._api.send("GET", f"{self._pods}?{query}"), 200).object["items"]
        return max(pods, key=lambda pod: pod["metadata"]["creationTimestamp"], default=None)

    def log(self, pod: str) -> str:
        """The end of what it printed; empty where nothing is kept."""
        query = urlencode({"container": CONTAINER, "tailLines": _LOG_LINES})
        reply = self._api.send("GET", f"{self._pods}/{pod}/log?{query}")
        return reply.text if reply.status == 200 else ""


def _accept(reply: Reply, *statuses: int) -> Reply:
    if reply.status not in statuses:
        raise InvalidRequest(f"the Kubernetes API refused: {reply.status} {reply.text[:500]}")
    return reply


class KubernetesJobs:
    """A Job for each attempt."""

    def __init__(self, study: Study, config: KubernetesConfig, directory: Path, launch: str) -> None:
        self._study = study
        self._config = config
        self._directory = directory.absolute()
        self._launch = launch
        account = KubernetesApi(config.api_url or IN_CLUSTER_URL, config.service_account_dir)
        self._api = JobsApi(account, config.namespace or _namespace(account))

    def check(self) -> None:
        """Raises OpenRLError where no Job could be run."""
        self._api.check(self._study.name)

    async def has(self, number: int) -> bool:
        return await _patiently(self._api.get, self._name(number)) is not None

    async def start(self, number: int, directory: Path, home: Path, variables: Mapping[str, str]) -> "RunningJob":  # noqa: ARG002
        name, study = self._name(number), self._study
        job = JobOf(name, study.name, number, study.command, self._directory, study.attempt_timeout_s)
        server = self._config.server_url or os.environ.get("TINKER_BASE_URL")
        given = {**({"TINKER_BASE_URL": server} if server else {}), **variables}
        await _patiently(self._api.create, render_job(self._config, job, given))
        return RunningJob(self._api, name, home / "log.txt")

    def _name(self, number: int) -> str:
        return job_name(self._study.name, self._launch, number)


def _namespace(account: KubernetesApi) -> str:
    try:
        return account.namespace()
    except OSError as error:
        raise InvalidRequest(f"kubernetes.namespace is not set, and no service account has one: {error}") from None


async def _patiently(call: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """The API server may be away for a while, and what was sent twice happens once."""
    for _ in range(_TRIES - 1):
        try:
            return await asyncio.to_thread(call, *arguments, **named)
        except Unavailable as error:
            _log.warning("tried again", error=str(error))
            await asyncio.sleep(_LOOK_S)
    return await asyncio.to_thread(call, *arguments, **named)


class RunningJob:
    """Follows a Job to its end."""

    def __init__(self, api: JobsApi, name: str, log: Path) -> None:
        self._api = api
        self._name = name
        self._log = log
        self.is_waiting = True
        self.ended: asyncio.Future[int] = asyncio.create_task(self._follow())

    async def end(self) -> None:
        """What its pod printed is kept."""
        if not self.ended.done():
            await _patiently(self._write_log, "")
            await _patiently(self._api.delete, self._name)
            await asyncio.wait((self.ended,))

    async def release(self) -> None:
        """The Job goes on; who resumes the study finds it."""
        self.ended.cancel()
        await asyncio.wait((self.ended,))

    async def _follow(self) -> int:
        while True:
            try:
                status = await asyncio.to_thread(self._look)
            except OpenRLError as error:
                _log.warning("a job is not seen", job=self._name, error=str(error))
            else:
                if status is not None:
                    return status
            await asyncio.sleep(_LOOK_S)

    def _look(self) -> int | None:
        """The exit status, where it has ended."""
        job = self._api.get(self._name)
        if job is None:
            with self._log.open("a") as log:
                log.write("its Job was deleted\n")
            return _GONE
        status = job.get("status", {})
        self.is_waiting = not status.get("ready")
        over = [each for each in status.get("conditions", ()) if each["status"] == "True"]
        if any(each["type"] == "Complete" for each in over):
            self._write_log("")
            return 0
        failed = [each for each in over if each["type"] == "Failed"]
        if not failed:
            return None
        return self._write_log(failed[0].get("message", "its Job failed"))

    def _write_log(self, otherwise: str) -> int:
        """Of the last pod; and its exit status. What only Kubernetes knows comes after what the command printed."""
        pod = self._api.last_pod(self._name)
        text = "" if pod is None else self._api.log(pod["metadata"]["name"])
        status, reason = _ending(pod, otherwise)
        self._log.write_text(text + (f"\n{reason}\n" if reason else ""))
        return status


def _ending(pod: dict[str, Any] | None, otherwise: str) -> tuple[int, str]:
    """Exit status of a failed Job's pod, and what its log does not say."""
    given = {} if pod is None else pod.get("status", {})
    for each in given.get("containerStatuses", ()):
        if over := each.get("state", {}).get("terminated"):
            reason = over.get("reason", "")
            told = given.get("reason") or ("" if reason in ("Error", "Completed") else reason)
            return over["exitCode"] or _GONE, told
    return _GONE, given.get("message") or otherwise
