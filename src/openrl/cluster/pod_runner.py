"""Runs one pod: carries out what its containers' states decide."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from openrl.cluster.container_state import (
    Action,
    BackOff,
    Begin,
    ContainerState,
    Event,
    Exited,
    Kill,
    Launch,
    Launched,
    Phase,
    PreStopEnded,
    Probed,
    RestartPolicy,
    RunPreStop,
    RunProbe,
    StopAsked,
    Terminate,
    Tick,
)
from openrl.cluster.networks import Network
from openrl.cluster.plans import PodPlan
from openrl.cluster.pod_spec import Container, Handler
from openrl.cluster.probing import ask
from openrl.cluster.programs import Program, Spawn

NOT_FOUND = 127
"""The status of a container whose program is not there, as a shell would say it."""
_LOG_CHUNK_BYTES = 2**16
Sink = Callable[[str, bytes], None]
"""Takes lines of a pod's output."""


@dataclass(frozen=True, slots=True)
class PodParts:
    """What a pod runs, resolved."""

    plan: PodPlan
    address: str
    programs: Mapping[str, Program]  # by container


@dataclass(slots=True)
class _Running:
    """A container and its process."""

    state: ContainerState
    process: asyncio.subprocess.Process | None = None
    pre_stop: asyncio.Task[None] | None = None


class PodRunner:
    """`run` lasts as long as the pod. `changed` is called whenever something can be seen to have changed."""

    def __init__(
        self,
        parts: PodParts,
        network: Network,
        directory: Path,
        back_off: BackOff,
        changed: Callable[[], None],
        sink: Sink,
    ) -> None:
        self.plan = parts.plan
        self.address = parts.address
        self.started_at = asyncio.get_running_loop().time()
        self.is_stopping = False
        self._parts = parts
        self._network = network
        self._directory = directory
        self._changed = changed
        self._sink = sink
        spec = parts.plan.spec
        grace_s = spec.termination_grace_period_seconds
        init_policy: RestartPolicy = "Never" if spec.restart_policy == "Never" else "OnFailure"
        self._init = [_Running(ContainerState(each, grace_s, init_policy, back_off)) for each in spec.init_containers]
        self._main = [
            _Running(ContainerState(each, grace_s, spec.restart_policy, back_off)) for each in spec.containers
        ]
        self._events: asyncio.Queue[tuple[_Running, Event]] = asyncio.Queue()
        self._group: asyncio.TaskGroup | None = None

    @property
    def containers(self) -> list[ContainerState]:
        """Of the pod's own containers, without those that prepare it."""
        return [each.state for each in self._main]

    @property
    def is_ready(self) -> bool:
        """Whether it gets connections: every container is, and it is not on its way out."""
        return not self.is_stopping and all(each.is_ready for each in self.containers)

    @property
    def is_over(self) -> bool:
        """Whether nothing of it will run again."""
        return any(each.state.phase is Phase.ENDED and each.state.status for each in self._init) or all(
            each.phase is Phase.ENDED for each in self.containers
        )

    @property
    def has_succeeded(self) -> bool:
        """Whether all containers ended with status 0."""
        return all(each.phase is Phase.ENDED and each.status == 0 for each in self.containers)

    @property
    def restarts(self) -> int:
        """Of all containers."""
        return sum(each.state.restarts for each in (*self._init, *self._main))

    @property
    def reason(self) -> str:
        """Why it is not as it should be, for people."""
        states = [each.state for each in (*self._init, *self._main)]
        troubles = (each.note if each.note and not each.is_ready else each.reason for each in states)
        return next(filter(None, troubles), "")

    @property
    def phase(self) -> str:
        """One word for people."""
        if self.is_over:
            return "Succeeded" if self.has_succeeded else "Failed" if not self.is_stopping else "Ended"
        if self.is_stopping:
            return "Terminating"
        for number, each in enumerate(self._init):
            if each.state.phase is not Phase.ENDED:
                return f"Init:{number}/{len(self._init)}"
        phases = [each.phase for each in self.containers]
        return next((each.value for each in phases if each is not Phase.RUNNING), "Running")

    def pid(self, container: str = "") -> int:
        """The process of a container, the first one's without a name."""
        for each in self._main:
            if each.process is not None and container in ("", each.state.container.name):
                return each.process.pid
        raise ProcessLookupError(f"pod {self.plan.name} has no process")

    def kill(self) -> None:
        """SIGKILL to everything that runs, as when memory runs out; the restart policy says what follows."""
        for each in (*self._init, *self._main):
            self._signal(each, signal.SIGKILL)

    async def execute(self, argv: tuple[str, ...], container: str = "") -> tuple[int, str]:
        """Run a command beside a container's process, the first one's without a name; its status and output."""
        chosen = next(each.container for each in self.containers if container in ("", each.container.name))
        process = await self._spawn(chosen, argv).start(asyncio.subprocess.PIPE)
        try:
            output, _ = await process.communicate()
        finally:
            _kill_group(process.pid)
        assert process.returncode is not None, "it has ended"
        return process.returncode, output.decode()

    def stop(self, grace_s: float | None = None) -> None:
        """Let it end: preStop, SIGTERM, and SIGKILL after the grace period."""
        self.is_stopping = True
        if grace_s is None:
            grace_s = self.plan.spec.termination_grace_period_seconds
        for each in (*self._init, *self._main):
            self._events.put_nowait((each, StopAsked(grace_s)))
        self._changed()

    async def run(self) -> None:
        """Init containers one after the other, then all others; returns when nothing will run again."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                for each in self._init:
                    await self._run_until_over([each])
                    if self.is_stopping or each.state.status != 0:
                        break
                else:
                    await self._run_until_over(self._main)
                if self.is_stopping:
                    for each in self._main:  # those that were never begun
                        each.state.handle(StopAsked(0.0), self._now())
            finally:
                self.kill()
                self._changed()

    async def _run_until_over(self, containers: list[_Running]) -> None:
        for each in containers:
            self._events.put_nowait((each, Begin()))
        while any(each.state.phase is not Phase.ENDED for each in containers):
            wake = min(each.state.next_wake() for each in containers)
            try:
                async with asyncio.timeout_at(wake if wake != float("inf") else None):
                    which, event = await self._events.get()
                self._handle(which, event)
            except TimeoutError:
                for each in containers:
                    self._handle(each, Tick())

    def _handle(self, which: _Running, event: Event) -> None:
        if which in self._main and self._init and isinstance(event, StopAsked) and not which.state.launches:
            which.state.handle(event, self._now())
            return
        before = (which.state.phase, which.state.is_ready, which.state.restarts)
        for action in which.state.handle(event, self._now()):
            self._act(which, action)
        if (which.state.phase, which.state.is_ready, which.state.restarts) != before:
            self._changed()

    def _act(self, which: _Running, action: Action) -> None:
        assert self._group is not None, "actions come from `run`"
        match action:
            case Launch():
                self._group.create_task(self._live(which))
            case RunProbe():
                self._group.create_task(self._probe(which, action, which.state.launches))
            case RunPreStop(timeout_s):
                which.pre_stop = self._group.create_task(self._pre_stop(which, timeout_s, which.state.launches))
            case Terminate():
                self._signal(which, self._parts.programs[which.state.container.name].stop_signal)
            case Kill():
                self._signal(which, signal.SIGKILL)

    async def _live(self, which: _Running) -> None:
        """One process, from its start to its end."""
        container = which.state.container
        log_file = self._directory / f"{container.name}.log"
        reading, writing = os.pipe()
        try:
            which.process = await self._spawn(container).start(writing)
        except OSError as error:
            os.close(reading)
            self._sink(self.plan.name, f"cannot start: {error}\n".encode())
            self._events.put_nowait((which, Exited(NOT_FOUND)))
            return
        finally:
            os.close(writing)
        self._events.put_nowait((which, Launched()))
        try:
            output = asyncio.ensure_future(self._copy_output(reading, log_file))
            status = await which.process.wait()
            # What the container left behind ends with it.
            _kill_group(which.process.pid)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await output
        finally:
            if which.process.returncode is None:
                _kill_group(which.process.pid)
        which.process = None
        self._events.put_nowait((which, Exited(status)))

    async def _copy_output(self, reading: int, log_file: Path) -> None:
        """To the log file, and line by line to whoever watches."""
        reader = asyncio.StreamReader()
        pipe = os.fdopen(reading, "rb", 0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            partial(asyncio.StreamReaderProtocol, reader), pipe
        )
        rest = b""
        try:
            with log_file.open("ab", buffering=0) as log:
                while chunk := await reader.read(_LOG_CHUNK_BYTES):
                    log.write(chunk)
                    whole, newline, rest = (rest + chunk).rpartition(b"\n")
                    if newline:
                        self._sink(self.plan.name, whole + newline)
        finally:
            transport.close()

    async def _probe(self, which: _Running, action: RunProbe, launch: int) -> None:
        probe = action.probe
        success, note = await self._ask(which, probe, probe.timeout_seconds)
        self._events.put_nowait((which, Probed(action.kind, success, launch, note)))

    async def _pre_stop(self, which: _Running, timeout_s: float, launch: int) -> None:
        hook = which.state.container.lifecycle.pre_stop
        assert hook is not None, "the state asks for a hook that there is"
        success, note = await self._ask(which, hook, timeout_s)
        if not success:
            self._sink(self.plan.name, f"preStop failed: {note}\n".encode())
        self._events.put_nowait((which, PreStopEnded(launch)))

    async def _ask(self, which: _Running, handler: Handler, timeout_s: float) -> tuple[bool, str]:
        container = which.state.container
        return await ask(handler, container, self.address, timeout_s, partial(self._run_in, container))

    async def _run_in(self, container: Container, argv: tuple[str, ...]) -> int:
        """A command beside the container's own process; it ends when nobody waits for it any more."""
        process = await self._spawn(container, argv).start(asyncio.subprocess.DEVNULL)
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                _kill_group(process.pid)

    def _spawn(self, container: Container, argv: tuple[str, ...] = ()) -> Spawn:
        program = self._parts.programs[container.name]
        if argv:
            program = replace(program, argv=argv)
        return self._network.spawn(program, self.address, self._directory / container.name)

    def _signal(self, which: _Running, number: signal.Signals) -> None:
        if which.process is not None and which.process.returncode is None:
            which.process.send_signal(number)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
