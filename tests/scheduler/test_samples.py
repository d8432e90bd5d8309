import time

from openrl.protocol.runs import SamplerSpec
from openrl.rpc.messages import (
    Cancel,
    Outcome,
    Sample,
    SampleDone,
    WorkerReady,
)
from openrl.scheduler.actions import Action, Finish, LoadSampler, SendCommand
from openrl.scheduler.events import (
    RequestCancelled,
    RequestsArrived,
    SamplerLoaded,
    SessionClosed,
    WorkerJoined,
    WorkerReported,
)
from openrl.scheduler.state import SchedulerState

from .rows import sample_row
from .simulation import World


def samples_in(actions: list[Action]) -> list[str]:
    commands = [action.command for action in actions if isinstance(action, SendCommand)]
    return [command.item.request_id for command in commands if isinstance(command, Sample)]


def state_with_sampler() -> SchedulerState:
    state = SchedulerState(30.0)
    state.handle(WorkerJoined("w", WorkerReady("w", ("tiny",), 1000, 4)), 0.0)
    return state


def test_a_sampler_is_read_once():
    world = World()
    world.join()
    world.submit(sample_row("a"), sample_row("b"))
    assert list(world.loads) == [LoadSampler("sampler-t0", "t0")]
    world.settle()
    world.submit(sample_row("c"))
    assert not world.loads


def test_an_unknown_sampler_fails_its_requests():
    state = state_with_sampler()
    state.handle(RequestsArrived((sample_row("a"),)), 0.0)
    (finish,) = state.handle(SamplerLoaded("sampler-t0", None), 0.0)
    assert isinstance(finish, Finish)
    assert (finish.state, finish.outcome.category) == ("failed", "user")


def test_sequences_in_flight_are_bounded_and_the_rest_goes_as_room_frees():
    world = World()
    worker = world.join(max_sequences=4)
    world.submit(*(sample_row(f"s{i}", position=i) for i in range(20)))
    world.answer_load()
    assert len(worker.commands) == 8
    world.settle()
    assert len(world.finished) == 20


def test_a_flood_does_not_keep_another_tenant_from_a_full_worker():
    world = World()
    worker = world.join(max_sequences=4)
    world.submit(*(sample_row(f"flood{i}", "t0", position=i) for i in range(100)))
    world.submit(sample_row("b", "t1", position=100))
    while world.loads:
        world.answer_load()
    sent = [command.item.request_id for command in worker.commands if isinstance(command, Sample)]
    assert sent == [*(f"flood{i}" for i in range(8)), "b"]
    world.submit(sample_row("b2", "t1", position=101), sample_row("b3", "t1", position=102))
    sent = [command.item.request_id for command in worker.commands if isinstance(command, Sample)]
    assert sent[9:] == ["b2"]  # half of what is decoded at once


def test_tenants_that_all_have_more_waiting_are_served_equally_whoever_ends_first():
    """The engine decodes faster what a tenant with few sequences has: that must not bring it more of them."""
    world = World()
    worker = world.join(max_sequences=8)
    tenants = ("t0", "t1", "t2")
    world.submit(*(sample_row(f"{tenant}/{i}", tenant, position=i) for i in range(60) for tenant in tenants))
    while world.loads:
        world.answer_load()

    def sent() -> list[str]:
        return [command.item.request_id for command in worker.commands if isinstance(command, Sample)]

    num_before = len(sent())
    for _ in range(30):
        there = sorted(each for each in sent() if each not in world.finished)  # those of t0 come first
        world.handle(WorkerReported(worker.worker_id, SampleDone((Outcome(there[0], result_ref="x"),))))
    counts = [sum(each.startswith(tenant) for each in sent()[num_before:]) for tenant in tenants]
    assert max(counts) - min(counts) <= 6


def test_a_waiting_sample_is_cancelled_without_a_command():
    state = state_with_sampler()
    state.handle(RequestsArrived((sample_row("a"),)), 0.0)
    (finish,) = state.handle(RequestCancelled("a"), 0.0)
    assert isinstance(finish, Finish)
    assert finish.state == "cancelled"
    assert state.handle(RequestCancelled("a"), 0.0) == []


def test_a_running_sample_is_cancelled_at_its_worker_and_its_late_report_ignored():
    world = World()
    worker = world.join()
    world.submit(sample_row("a"))
    world.answer_load()
    world.handle(RequestCancelled("a"))
    assert world.finished == {"a": "cancelled"}
    assert worker.commands[-1] == Cancel("a")
    world.handle(WorkerReported(worker.worker_id, SampleDone((Outcome("a", result_ref="x"),))))
    assert world.finished == {"a": "cancelled"}


def test_the_samples_of_a_closed_session_are_dropped():
    world = World()
    world.join()
    world.submit(sample_row("a"))
    world.answer_load()
    world.handle(SessionClosed("s0", ()))
    assert world.finished == {"a": "cancelled"}


def test_ten_thousand_waiting_samples_are_cheap():
    state = state_with_sampler()
    rows = [sample_row(f"s{i}", f"t{i % 50}", position=i) for i in range(10_000)]
    state.handle(RequestsArrived(tuple(rows)), 0.0)
    started = time.perf_counter()
    num_sent = 0
    pending: list[str] = []
    for tenant in range(50):
        pending += samples_in(state.handle(SamplerLoaded(f"sampler-t{tenant}", spec_of(tenant)), 0.0))
    while pending:
        num_sent += 1
        pending += samples_in(state.handle(WorkerReported("w", SampleDone((Outcome(pending.pop(0)),))), 0.0))
    elapsed = time.perf_counter() - started
    print(f"{num_sent / elapsed:.0f} samples/s")
    assert num_sent == 10_000
    assert elapsed < 5.0


def spec_of(tenant: int) -> SamplerSpec:
    return SamplerSpec(f"sampler-t{tenant}", "tiny", f"adapter{tenant}")


def test_the_same_events_give_the_same_actions():
    def trace() -> list[object]:
        state = state_with_sampler()
        rows = tuple(sample_row(f"s{i}", f"t{i % 3}", position=i) for i in range(30))
        actions: list[object] = [*state.handle(RequestsArrived(rows), 0.0)]
        for tenant in range(3):
            actions += state.handle(SamplerLoaded(f"sampler-t{tenant}", spec_of(tenant)), 1.0)
        return actions

    assert trace() == trace()
