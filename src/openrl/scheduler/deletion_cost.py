"""Tells Kubernetes which worker's pod to take first when a pool shrinks: those that hold nothing.

A worker's name is its pod's. One call of the API is all there is, so it needs no client library.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from openrl.errors import Unavailable
from openrl.kubernetes import KubernetesApi
from openrl.store.cluster import WorkerStatus
from openrl.telemetry.logs import get_logger

ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"
ROUND_S = 10.0
_BUSY = 50
_RUN = 100
_MOST_RUNS = 10_000
_log = get_logger(__name__)


def deletion_cost(worker: WorkerStatus) -> int:
    """0 for a worker that holds nothing, more the more there is to move; coarse, as each change is a call."""
    return _RUN * min(worker.num_runs, _MOST_RUNS) + _BUSY * bool(worker.num_requests)


class PodApi:
    """The one call that is needed, with the credentials of the pod's service account."""

    def __init__(self, url: str, account_dir: Path) -> None:
        self._api = KubernetesApi(url, account_dir)

    def annotate(self, pod: str, name: str, value: str) -> bool:
        """Set an annotation; False if there is no such pod. Raises Unavailable."""
        try:
            path = f"/api/v1/namespaces/{self._api.namespace()}/pods/{quote(pod, safe='')}"
        except OSError as error:
            raise Unavailable(f"the service account has no namespace: {error}") from error
        body = {"metadata": {"annotations": {name: value}}}
        reply = self._api.send("PATCH", path, body, "application/merge-patch+json")
        if reply.status not in (200, 404):
            raise Unavailable(f"the Kubernetes API refused to annotate pod {pod!r}: {reply.status} {reply.text[:200]}")
        return reply.status == 200


class DeletionCosts:
    """What the pods were told last; a new leader tells them all again."""

    def __init__(self, api: PodApi, workers: Callable[[], Sequence[WorkerStatus]]) -> None:
        self._api = api
        self._workers = workers
        self._told: dict[str, int] = {}

    async def run(self) -> None:
        """For ever; scheduling does not depend on it."""
        while True:
            await self.tell()
            await asyncio.sleep(ROUND_S)

    async def tell(self) -> None:
        """Tell the pods whose cost has changed. What fails is tried again in the next round."""
        costs = {worker.name: deletion_cost(worker) for worker in self._workers()}
        self._told = {name: cost for name, cost in self._told.items() if name in costs}
        for name, cost in costs.items():
            if self._told.get(name) == cost:
                continue
            try:
                is_pod = await asyncio.to_thread(self._api.annotate, name, ANNOTATION, str(cost))
            except Unavailable as error:
                _log.warning("pods are not told what deleting them costs", error=str(error))
                return
            if not is_pod:
                _log.info("a worker is no pod of this namespace", worker=name)
            self._told[name] = cost
