"""What is done about one container, and when: probes, restarts, its end. No clock, no process."""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, assert_never

from openrl.cluster.pod_spec import Container, Probe

ProbeKind = Literal["startup", "readiness", "liveness"]
RestartPolicy = Literal["Always", "OnFailure", "Never"]
LEAST_GRACE_S = 2.0
"""What is left for SIGTERM when a preStop hook has used up the grace period."""


class Phase(StrEnum):
    """Where a container is."""

    WAITING = "Waiting"
    RUNNING = "Running"
    BACK_OFF = "CrashLoopBackOff"
    STOPPING = "Terminating"
    ENDED = "Ended"


@dataclass(frozen=True, slots=True)
class Begin:
    """The container is to run."""


@dataclass(frozen=True, slots=True)
class Launched:
    """Its process runs."""


@dataclass(frozen=True, slots=True)
class Exited:
    """Its process has ended."""

    status: int


@dataclass(frozen=True, slots=True)
class Probed:
    """A probe has an answer. `launch` says of which process."""

    kind: ProbeKind
    success: bool
    launch: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class PreStopEnded:
    """The hook has run."""

    launch: int


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The pod is to end."""

    grace_s: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Begin | Launched | Exited | Probed | PreStopEnded | StopAsked | Tick


@dataclass(frozen=True, slots=True)
class Launch:
    """Start the process."""


@dataclass(frozen=True, slots=True)
class RunProbe:
    """Ask."""

    kind: ProbeKind
    probe: Probe


@dataclass(frozen=True, slots=True)
class RunPreStop:
    """Run the hook, for `timeout_s` at most."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class Terminate:
    """SIGTERM."""


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL."""


Action = Launch | RunProbe | RunPreStop | Terminate | Kill


@dataclass(frozen=True, slots=True)
class BackOff:
    """How long a container that ends waits to start again: not at all, then twice as long each time."""

    first_s: float = 10.0
    most_s: float = 300.0
    forgotten_after_s: float = 600.0  # of running

    def delay_s(self, restarts: int) -> float:
        """Before the restart after so many of them."""
        return 0.0 if restarts == 0 else min(self.most_s, self.first_s * 2.0 ** min(restarts - 1, 60))


@dataclass(slots=True)
class _Schedule:
    """One probe's turns and counts."""

    probe: Probe
    due: float
    in_flight: bool = False
    successes: int = 0  # in a row
    failures: int = 0  # in a row

    def observe(self, *, success: bool) -> bool | None:
        """Whether a threshold is reached: True of successes, False of failures, None: neither."""
        self.successes = self.successes + 1 if success else 0
        self.failures = 0 if success else self.failures + 1
        if self.successes >= self.probe.success_threshold:
            return True
        return False if self.failures >= self.probe.failure_threshold else None


@dataclass(slots=True)
class ContainerState:
    """`handle` is told what happened; attributes are for whoever shows them."""

    container: Container
    grace_s: float
    restart_policy: RestartPolicy = "Always"
    back_off: BackOff = BackOff()
    phase: Phase = Phase.WAITING
    launches: int = 0
    is_started: bool = False
    is_ready: bool = False
    restarts: int = 0
    status: int | None = None  # of the last process
    reason: str = ""  # of the last restart, for people
    note: str = ""  # what the last probe complained of
    _launched_at: float = 0.0
    _launch_at: float = math.inf
    _kill_at: float = math.inf
    _crashes: int = 0  # since it last ran for long
    _stop_asked: bool = False
    _is_launching: bool = False
    _terminated: bool = False
    _schedules: dict[ProbeKind, _Schedule] = field(default_factory=dict[ProbeKind, _Schedule])

    def handle(self, event: Event, now: float) -> list[Action]:
        """Apply one event; return what must be done, in order."""
        match event:
            case Begin():
                return [] if self._stop_asked else self._launch()
            case Launched():
                return self._launched(now)
            case Exited(status):
                return self._exited(status, now)
            case Probed():
                return self._probed(event, now)
            case PreStopEnded(launch):
                return self._terminate(now) if launch == self.launches else []
            case StopAsked(grace_s):
                return self._stop(grace_s, now)
            case Tick():
                return self._tick(now)
            case _:
                assert_never(event)

    def next_wake(self) -> float:
        """When `Tick` is wanted at the latest."""
        due = [each.due for each in self._schedules.values() if not each.in_flight]
        return min((*due, self._launch_at, self._kill_at), default=math.inf)

    def _launch(self) -> list[Action]:
        self.phase = Phase.WAITING
        self._launch_at = math.inf
        self._is_launching = True
        return [Launch()]

    def _launched(self, now: float) -> list[Action]:
        self.launches += 1
        self._launched_at = now
        self._is_launching = self._terminated = False
        self.phase = Phase.RUNNING
        if self._stop_asked:
            return self._begin_end(self.grace_s, now)
        probe = self.container.startup_probe
        if probe is None:
            self._start(now)
        else:
            self._schedules = {"startup": _Schedule(probe, now + probe.initial_delay_seconds)}
        return self._tick(now)

    def _start(self, now: float) -> None:
        """The container has started: from here on it is asked whether it is ready, and whether it is alive."""
        self.is_started = True
        self.is_ready = self.container.readiness_probe is None
        asked: dict[ProbeKind, Probe | None] = {
            "readiness": self.container.readiness_probe,
            "liveness": self.container.liveness_probe,
        }
        self._schedules = {
            kind: _Schedule(probe, max(now, self._launched_at + probe.initial_delay_seconds))
            for kind, probe in asked.items()
            if probe is not None
        }

    def _probed(self, event: Probed, now: float) -> list[Action]:
        schedule = self._schedules.get(event.kind)
        if event.launch != self.launches or schedule is None:
            return []
        schedule.in_flight = False
        reached = schedule.observe(success=event.success)
        self.note = "" if event.success else f"{event.kind} probe failed: {event.note}"
        match event.kind:
            case "startup" if reached:
                self._start(now)
            case "readiness" if reached is not None:
                self.is_ready = reached
            case "startup" | "liveness" if reached is False:
                self.reason = self.note
                return self._begin_end(self._grace_after(schedule.probe), now)
            case _:
                pass
        return self._tick(now)

    def _grace_after(self, probe: Probe) -> float:
        own = probe.termination_grace_period_seconds
        return self.grace_s if own is None else own

    def _stop(self, grace_s: float, now: float) -> list[Action]:
        self._stop_asked = True
        self.grace_s = grace_s
        if self.phase is Phase.RUNNING:
            return self._begin_end(grace_s, now)
        if self.phase is Phase.STOPPING:
            self._kill_at = min(self._kill_at, now + grace_s)
        elif not self._is_launching:
            self._end()
        return []

    def _begin_end(self, grace_s: float, now: float) -> list[Action]:
        """preStop, SIGTERM, and SIGKILL when the grace period is over. Readiness goes on being asked."""
        self.phase = Phase.STOPPING
        self._kill_at = now + grace_s
        self._schedules = {kind: each for kind, each in self._schedules.items() if kind == "readiness"}
        if self.container.lifecycle.pre_stop is not None:
            return [RunPreStop(grace_s)]
        return self._terminate(now)

    def _terminate(self, now: float) -> list[Action]:
        if self.phase is not Phase.STOPPING or self._terminated:
            return []
        self._terminated = True
        if self.container.lifecycle.pre_stop is not None:
            self._kill_at = max(self._kill_at, now + LEAST_GRACE_S)
        return [Terminate()]

    def _exited(self, status: int, now: float) -> list[Action]:
        ran_s = 0.0 if self._is_launching else now - self._launched_at
        self.status = status
        self.is_started = self.is_ready = False
        self.note = ""
        self._schedules = {}
        self._kill_at = math.inf
        self._is_launching = False
        again = self.restart_policy == "Always" or (self.restart_policy == "OnFailure" and status != 0)
        if self._stop_asked or not again:
            self._end()
            return []
        if ran_s >= self.back_off.forgotten_after_s:
            self._crashes = 0
        delay_s = self.back_off.delay_s(self._crashes)
        self._crashes += 1
        self.restarts += 1
        if self.phase is not Phase.STOPPING:
            self.reason = f"ended with status {status}"
        if delay_s == 0.0:
            return self._launch()
        self.phase = Phase.BACK_OFF
        self._launch_at = now + delay_s
        return []

    def _tick(self, now: float) -> list[Action]:
        if now >= self._kill_at:
            if not self._terminated:
                return self._terminate(now)
            self._kill_at = math.inf
            return [Kill()]
        if now >= self._launch_at:
            return self._launch()
        actions: list[Action] = []
        for kind, schedule in self._schedules.items():
            if not schedule.in_flight and now >= schedule.due:
                schedule.in_flight = True
                schedule.due = now + schedule.probe.period_seconds
                actions.append(RunProbe(kind, schedule.probe))
        return actions

    def _end(self) -> None:
        self.phase = Phase.ENDED
        self._launch_at = self._kill_at = math.inf
        self._schedules = {}
