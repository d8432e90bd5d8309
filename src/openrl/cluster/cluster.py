"""All pods of an installation on one machine: starts them in order, keeps them, lets them end in order."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from openrl.cluster.container_state import BackOff
from openrl.cluster.gpus import GpuPool, gpus_of_this_machine
from openrl.cluster.manifests import Manifests, Runnable, Workload
from openrl.cluster.networks import Network
from openrl.cluster.plans import PodPlan, num_replicas, pods_of
from openrl.cluster.pod_parts import Machine, resolve
from openrl.cluster.pod_runner import PodRunner
from openrl.cluster.services import Services, find_service
from openrl.errors import NotFound, Unavailable

END_ORDER = ("gateway", "worker", "scheduler")
"""Components as they end: first who takes work in, then who does it. All others follow, databases last."""


@dataclass(frozen=True, slots=True)
class Options:
    """How an installation runs here."""

    directory: Path
    namespace: str = "default"
    outside: Mapping[str, str] = field(default_factory=dict[str, str])  # environment of this process
    back_off: BackOff = field(default_factory=BackOff)
    publish: tuple[str, int] | None = None  # the address where the gateway is there for everybody


class Watcher(Protocol):
    """Who is told of what happens."""

    def lines(self, pod: str, output: bytes) -> None:
        """A pod has written these lines."""

    def changed(self) -> None:
        """Some pod's state is another one."""


class Silence:
    """Nobody watches."""

    def lines(self, pod: str, output: bytes) -> None:
        """They are in the pod's log file."""

    def changed(self) -> None:
        """It can be seen in the pods."""


class Cluster:
    """Pods by name. Use `run_cluster`."""

    def __init__(
        self, manifests: Manifests, network: Network, options: Options, watcher: Watcher, pods: dict[str, PodRunner]
    ) -> None:
        self.pods = pods
        self.plans: dict[str, tuple[PodPlan, str]] = {}
        self.url = ""
        self.network = network
        self._options = options
        self._machine = Machine(
            manifests, network, options.namespace, options.directory, options.outside, GpuPool(gpus_of_this_machine())
        )
        self.services = Services(manifests, network, options.namespace, self.plans, self.pods)
        self._manifests = manifests
        self._watcher = watcher
        self._workloads = {f"{each.kind}/{each.metadata.name}": each for each in manifests.runnables}
        self._addresses: dict[str, str] = {}  # by pod, also of those that are not there at the moment
        self._keepers: dict[str, asyncio.Task[None]] = {}  # by pod
        self._group = asyncio.TaskGroup()
        self._news = asyncio.Event()
        self._is_ending = False

    async def install(self) -> None:
        """Run what comes before, then databases, then everything else; returns when all of it has been started.

        Raises Unavailable if a Job that comes before fails.
        """
        await self.network.open()
        for workload in self._manifests.plain():
            if not _is_job(workload):
                for number in range(num_replicas(workload)):
                    await self._place(pods_of(workload, number))
        await self.services.open()
        await self._publish()
        await self._refresh()
        await self.run_hooks("pre-install")
        plain = self._manifests.plain()
        databases = [each for each in plain if each.kind == "StatefulSet"]
        for workload in databases:
            self._start(workload)
        await self.wait_until(self.is_ready)
        for job in filter(_is_job, plain):
            await self.run_job(job)
        for workload in plain:
            if workload not in databases and not _is_job(workload):
                self._start(workload)
        await self.run_hooks("post-install")

    async def run_hooks(self, moment: str) -> None:
        """What belongs to a moment, "test" among them, one after the other. Raises Unavailable if one fails."""
        for job in self._manifests.hooks(moment):
            await self.run_job(job)

    async def run_job(self, job: Runnable) -> None:
        """All completions of a Job, or a single Pod, to their end. Raises Unavailable if they do not succeed."""
        limit = job.spec.backoff_limit if isinstance(job, Workload) else 0
        width = asyncio.Semaphore(max(1, job.spec.parallelism) if isinstance(job, Workload) else 1)

        async def _one(number: int) -> None:
            async with width:
                await self._complete(job, number, limit)

        with _plain_errors():
            async with asyncio.TaskGroup() as group:
                for number in range(num_replicas(job)):
                    group.create_task(_one(number))

    async def scale(self, workload: str, replicas: int) -> None:
        """Have so many replicas of a workload, "Deployment/NAME": the last ones end, or new ones begin."""
        shape = self._workload(workload)
        have = sorted(name for name, (plan, _) in self.plans.items() if plan.workload == workload)
        number = 0
        wanted: set[str] = set()
        while number < replicas:
            plans = pods_of(shape, number)
            wanted |= {plan.name for plan in plans}
            await self._place([plan for plan in plans if plan.name not in self.plans])
            number += 1
        await self._refresh()
        for name in sorted(wanted):
            if name not in self._keepers:
                self._keep(name)
        await asyncio.gather(*(self.remove(name) for name in have if name not in wanted))

    def num_replicas(self, workload: str) -> int:
        """How many a workload has, "Deployment/NAME"."""
        return len({plan.group or plan.name for plan, _ in self.plans.values() if plan.workload == workload})

    def room_for(self, workload: str) -> int | None:
        """How many replicas of a workload the machine's GPUs can hold; None: any number."""
        shape = pods_of(self._workload(workload), 0)
        more = self._machine.gpus.room_for(each for plan in shape for each in plan.spec.containers)
        return None if more is None else self.num_replicas(workload) + more

    async def remove(self, name: str) -> None:
        """End a pod for good, in good order."""
        keeper = self._keepers.pop(name)
        del self.plans[name]
        if name in self.pods:
            self.pods[name].stop()
        await asyncio.wait([keeper])
        self._machine.gpus.give_back(name)
        await self._refresh()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when it holds; it is asked whenever something has changed."""
        while not condition():
            self._news.clear()
            await self._news.wait()

    def is_ready(self) -> bool:
        """Whether every pod that is kept is ready."""
        return all(name in self.pods and self.pods[name].is_ready for name in self._keepers)

    def of(self, component: str) -> list[PodRunner]:
        """The pods of a component, by name."""
        return [pod for _, pod in sorted(self.pods.items()) if pod.plan.component == component]

    async def end(self) -> None:
        """Let everything end, in order; returns when nothing runs."""
        self._is_ending = True
        remaining = dict(self._keepers)
        for name in self.pods.keys() - remaining.keys():
            self.pods[name].stop(0.0)  # a Job that was under way
        for pods in _in_end_order(self.plans[name][0] for name in remaining):
            for plan in pods:
                if plan.name in self.pods:
                    self.pods[plan.name].stop()
            await asyncio.wait([self._keepers[plan.name] for plan in pods])

    def hurry(self) -> None:
        """Let what is still ending end at once."""
        for pod in self.pods.values():
            pod.stop(0.0)

    async def close(self) -> None:
        """Give addresses back."""
        await self.services.close()
        await self.network.close()

    async def _publish(self) -> None:
        if self._options.publish is None:
            return
        service = find_service(self._manifests.services, "gateway")
        if service is None:
            return
        address, port = self._options.publish
        number = await self.services.publish(service, service.spec.ports[0], address, port)
        self.url = f"http://{address}:{number}"

    async def _place(self, plans: Iterable[PodPlan]) -> None:
        """Give pods their addresses, which they keep however often they are made, also after they were scaled away."""
        for plan in plans:
            if plan.name not in self._addresses:
                self._addresses[plan.name] = await self.network.add_pod()
            self.plans[plan.name] = (plan, self._addresses[plan.name])

    async def _refresh(self) -> None:
        """Tell the network who there is."""
        self.network.set_names(self.services.names())
        if self.network.can_separate and self._manifests.policies:
            await self.network.set_rules(self.services.rules())

    def _start(self, workload: Runnable) -> None:
        for number in range(num_replicas(workload)):
            for plan in pods_of(workload, number):
                self._keep(plan.name)

    def _keep(self, name: str) -> None:
        self._keepers[name] = self._group.create_task(self._keep_running(name))

    async def _keep_running(self, name: str) -> None:
        """Make the pod, and make it again when it was stopped and is still wanted."""
        plan, address = self.plans[name]
        while name in self.plans and not self._is_ending:
            pod = self._make(plan, address)
            await pod.run()
            if pod.is_over and not pod.is_stopping:
                return  # it will not run again by itself
        self.pods.pop(name, None)
        self._changed()

    def _make(self, plan: PodPlan, address: str) -> PodRunner:
        parts = resolve(plan, address, self._machine)
        directory = self._options.directory / "pods" / plan.name
        pod = PodRunner(parts, self.network, directory, self._options.back_off, self._changed, self._watcher.lines)
        self.pods[plan.name] = pod
        self._changed()
        return pod

    async def _complete(self, job: Runnable, number: int, limit: int) -> None:
        """One completion: tried again, in the same pod or a new one, `limit` times."""
        (plan,) = pods_of(job, number)
        if plan.name not in self.plans:
            await self._place([plan])
            await self._refresh()
        plan, address = self.plans[plan.name]
        for attempt in range(limit + 1):
            pod = self._make(plan, address)
            running = self._group.create_task(pod.run())
            await self.wait_until(lambda pod=pod: pod.is_over or pod.restarts > limit)
            if not pod.is_over:
                pod.stop(0.0)
            await running
            if pod.has_succeeded:
                return
            if plan.spec.restart_policy == "OnFailure" or attempt == limit:
                raise Unavailable(f"{plan.workload} has failed: {pod.reason}; see {self.log_of(pod)}")
            await asyncio.sleep(self._options.back_off.delay_s(attempt + 1))

    def log_of(self, pod: PodRunner) -> Path:
        """What its first container has written."""
        return self._options.directory / "pods" / pod.plan.name / f"{pod.plan.spec.containers[0].name}.log"

    def _workload(self, name: str) -> Runnable:
        if name not in self._workloads:
            raise NotFound.of("workload", name)
        return self._workloads[name]

    def _changed(self) -> None:
        """Something can be seen to have changed: names may mean other pods, and groups that lost one begin anew."""
        self._news.set()
        self._watcher.changed()
        if self.services.addresses:
            self.network.set_names(self.services.names())
        for pod in list(self.pods.values()):
            if pod.plan.group and pod.restarts and not pod.is_stopping:
                for other in self.pods.values():
                    if other.plan.group == pod.plan.group and not other.is_stopping:
                        other.stop()


@asynccontextmanager
async def run_cluster(
    manifests: Manifests,
    network: Network,
    options: Options,
    watcher: Watcher | None = None,
    pods: dict[str, PodRunner] | None = None,
) -> AsyncGenerator[Cluster]:
    """A cluster whose pods end, in order, with the block. Nothing of it runs yet: see `Cluster.install`.

    Its pods are in `pods`, if that is given.
    """
    cluster = Cluster(manifests, network, options, watcher or Silence(), {} if pods is None else pods)
    try:
        with _plain_errors():
            async with cluster._group:
                try:
                    yield cluster
                finally:
                    await cluster.end()
    finally:
        await cluster.close()


@contextmanager
def _plain_errors() -> Generator[None]:
    """What went wrong alone is told as it is, not as one of several things."""
    try:
        yield
    except BaseExceptionGroup as errors:
        if len(errors.exceptions) == 1:
            raise errors.exceptions[0] from None
        raise


def _is_job(workload: Runnable) -> bool:
    return workload.kind in ("Job", "Pod")


def _in_end_order(plans: Iterable[PodPlan]) -> list[list[PodPlan]]:
    """Groups of pods that end together, one group after the other."""
    groups: dict[int, list[PodPlan]] = {}
    for plan in plans:
        if plan.workload.startswith("StatefulSet/"):
            place = len(END_ORDER) + 1
        else:
            place = END_ORDER.index(plan.component) if plan.component in END_ORDER else len(END_ORDER)
        groups.setdefault(place, []).append(plan)
    return [groups[place] for place in sorted(groups)]
