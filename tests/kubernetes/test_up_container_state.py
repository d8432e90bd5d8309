"""When a container is probed, ready, restarted and killed: on a virtual clock."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

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
    ProbeKind,
    RunPreStop,
    RunProbe,
    StopAsked,
    Terminate,
    Tick,
)
from openrl.cluster.pod_spec import Container, Exec, Handler, Lifecycle, Probe

ASK = Exec(command=("ask",))
PROBES = {
    "startup_probe": Probe(exec=ASK, period_seconds=5, failure_threshold=4),
    "readiness_probe": Probe(exec=ASK, period_seconds=3, failure_threshold=2, success_threshold=2),
    "liveness_probe": Probe(exec=ASK, period_seconds=7, failure_threshold=3),
}


@dataclass
class Machine:
    """Carries out actions at once; probes answer what `answers` says, processes end on signals after `ends_in`."""

    state: ContainerState
    now: float = 100.0
    answers: dict[ProbeKind, bool] = field(default_factory=dict[ProbeKind, bool])
    seen: list[tuple[float, object]] = field(default_factory=list[tuple[float, object]])
    ends_on_terminate: bool = True

    def tell(self, event: Event) -> None:
        for action in self.state.handle(event, self.now):
            self.act(action)

    def act(self, action: Action) -> None:
        match action:
            case Launch():
                self.note("launch")
                self.tell(Launched())
            case RunProbe(kind):
                self.note(kind)
                self.tell(Probed(kind, self.answers.get(kind, True), self.state.launches, "no"))
            case RunPreStop():
                self.note("preStop")
                self.tell(PreStopEnded(self.state.launches))
            case Terminate():
                self.note("SIGTERM")
                if self.ends_on_terminate:
                    self.tell(Exited(0))
            case Kill():
                self.note("SIGKILL")
                self.tell(Exited(-9))

    def note(self, what: str) -> None:
        self.seen.append((self.now - 100.0, what))

    def run_until(self, when: float) -> None:
        """Let time pass, from one wanted moment to the next."""
        while (wake := self.state.next_wake()) <= 100.0 + when:
            self.now = max(self.now, wake)
            self.tell(Tick())
        self.now = 100.0 + when

    def times(self, what: str) -> list[float]:
        return [at for at, each in self.seen if each == what]


def machine(probes: Mapping[str, Probe] | None = None, *, hook: bool = False) -> Machine:
    lifecycle = Lifecycle(pre_stop=Handler(exec=ASK)) if hook else Lifecycle()
    container = Container(name="main", lifecycle=lifecycle, **(probes or {}))  # pyright: ignore[reportArgumentType]
    return Machine(ContainerState(container, grace_s=30.0))


def test_readiness_and_liveness_are_asked_only_after_the_startup_probe_has_succeeded():
    here = machine(PROBES)
    here.answers["startup"] = False
    here.tell(Begin())
    here.run_until(12.0)
    assert [what for _, what in here.seen] == ["launch", "startup", "startup", "startup"]
    assert not here.state.is_started
    here.answers["startup"] = True
    here.run_until(18.0)
    assert here.times("startup") == [0.0, 5.0, 10.0, 15.0]
    assert here.times("readiness") == [15.0, 18.0]
    assert here.times("liveness") == [15.0]
    assert here.state.is_started


def test_thresholds_count_answers_in_a_row():
    here = machine(PROBES)
    here.tell(Begin())
    assert not here.state.is_ready  # one success of two
    here.run_until(3.0)
    assert here.state.is_ready
    here.answers["readiness"] = False
    here.run_until(6.0)
    assert here.state.is_ready
    here.run_until(9.0)
    assert not here.state.is_ready
    assert here.state.phase is Phase.RUNNING


def test_a_startup_probe_that_uses_up_its_budget_ends_the_container():
    here = machine(PROBES)
    here.answers["startup"] = False
    here.tell(Begin())
    here.run_until(15.0)
    assert here.times("SIGTERM") == [15.0]
    assert here.state.restarts == 1
    assert here.state.reason == "startup probe failed: no"


def test_without_probes_a_container_is_ready_when_it_runs():
    here = machine()
    here.tell(Begin())
    assert here.state.is_ready
    assert here.state.next_wake() == math.inf


def test_a_container_that_is_not_alive_runs_its_hook_and_gets_signals_then_starts_again():
    here = machine({"liveness_probe": PROBES["liveness_probe"]}, hook=True)
    here.ends_on_terminate = False
    here.tell(Begin())
    here.answers["liveness"] = False
    here.run_until(21.0)
    assert here.times("preStop") == here.times("SIGTERM") == [21.0]
    here.run_until(51.0)
    assert here.times("SIGKILL") == [51.0]
    assert here.times("launch") == [0.0, 51.0]


def test_initial_delay_counts_from_the_start_of_the_process():
    here = machine({"liveness_probe": Probe(exec=ASK, initial_delay_seconds=20, period_seconds=10)})
    here.tell(Begin())
    here.run_until(45.0)
    assert here.times("liveness") == [20.0, 30.0, 40.0]


def test_restarts_wait_twice_as_long_each_time_until_it_has_run_for_long():
    here = machine()
    here.tell(Begin())
    for _ in range(8):
        here.tell(Exited(1))
        here.run_until(here.state.next_wake() - 100.0 if here.state.next_wake() < math.inf else here.now - 100.0)
    gaps = [after - before for before, after in zip(here.times("launch"), here.times("launch")[1:], strict=False)]
    assert gaps == [0.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0]
    here.now += 600.0
    here.tell(Exited(1))
    assert here.state.phase is Phase.RUNNING  # at once


def test_a_program_that_cannot_be_started_backs_off_too():
    state = machine().state
    now = 100_000.0
    state.handle(Begin(), now)
    assert state.handle(Exited(127), now) == [Launch()]
    assert state.handle(Exited(127), now) == []
    assert state.phase is Phase.BACK_OFF
    assert state.next_wake() == now + 10.0


def test_a_stop_ends_it_for_good_whatever_it_was_doing():
    waiting = machine()
    waiting.tell(StopAsked(5.0))
    assert waiting.state.phase is Phase.ENDED
    waiting.tell(Begin())
    assert waiting.times("launch") == []

    backing_off = machine()
    backing_off.tell(Begin())
    backing_off.tell(Exited(1))
    backing_off.tell(Exited(1))
    assert backing_off.state.phase is Phase.BACK_OFF
    backing_off.tell(StopAsked(5.0))
    assert backing_off.state.phase is Phase.ENDED

    launching = machine().state
    assert launching.handle(Begin(), 0.0) == [Launch()]
    assert launching.handle(StopAsked(5.0), 0.0) == []
    assert launching.handle(Launched(), 1.0) == [Terminate()]


def test_a_hook_that_uses_up_the_grace_period_leaves_a_moment_for_sigterm():
    state = machine(hook=True).state
    state.handle(Begin(), 0.0)
    state.handle(Launched(), 0.0)
    assert state.handle(StopAsked(10.0), 0.0) == [RunPreStop(10.0)]
    assert state.handle(Tick(), 10.0) == [Terminate()]
    assert state.handle(PreStopEnded(1), 10.1) == []
    assert state.next_wake() == 12.0
    assert state.handle(Tick(), 12.0) == [Kill()]


def test_answers_about_an_earlier_process_are_not_counted():
    state = machine({"readiness_probe": Probe(exec=ASK)}).state
    state.handle(Begin(), 0.0)
    state.handle(Launched(), 0.0)
    state.handle(Exited(1), 1.0)
    state.handle(Launched(), 2.0)
    state.handle(Probed("readiness", success=True, launch=1), 2.1)
    assert not state.is_ready
    state.handle(Probed("readiness", success=True, launch=2), 2.2)
    assert state.is_ready


EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(Exited, st.integers(-9, 3)),
    st.builds(Probed, st.sampled_from(("startup", "readiness", "liveness")), st.booleans(), st.integers(1, 4)),
    st.builds(PreStopEnded, st.integers(1, 4)),
    st.builds(StopAsked, st.floats(0, 40)),
    st.just(Tick()),
)


@given(st.lists(st.tuples(EVENTS, st.floats(0, 60)), max_size=40), st.booleans(), st.sets(st.sampled_from([*PROBES])))
def test_whatever_happens_one_process_at_most_runs_and_a_stop_leads_to_the_end(
    events: list[tuple[Event, float]], hook: bool, probes: set[str]
):
    state = machine({name: PROBES[name] for name in probes}, hook=hook).state
    now, alive, probing = 0.0, False, set[str]()
    queue: list[Event] = [Begin()]

    def step() -> None:
        nonlocal alive
        while queue:
            event = queue.pop(0)
            if isinstance(event, Exited):
                if not alive:
                    continue
                alive = False
                probing.clear()
            for action in state.handle(event, now):
                match action:
                    case Launch():
                        assert not alive
                        alive = True
                        queue.append(Launched())
                    case RunProbe(kind):
                        assert alive
                        assert kind == "startup" or state.is_started or state.phase is Phase.STOPPING
                        assert kind not in probing
                    case Kill():
                        assert alive
                        queue.append(Exited(-9))
                    case Terminate() | RunPreStop():
                        assert alive
            assert not state.is_ready or state.is_started

    step()
    for event, pause in events:
        now += pause
        queue.append(event)
        step()
    queue.append(StopAsked(30.0))
    step()
    for _ in range(100):
        if state.phase is Phase.ENDED:
            break
        assert state.next_wake() < math.inf
        now = max(now, state.next_wake())
        queue.append(Tick())
        step()
    assert state.phase is Phase.ENDED
    assert not alive


@given(st.integers(0, 10_000))
def test_no_pause_is_longer_than_the_longest(restarts: int):
    assert 0.0 <= BackOff().delay_s(restarts) <= BackOff().most_s
    assert BackOff().delay_s(restarts) <= BackOff().delay_s(restarts + 1)
