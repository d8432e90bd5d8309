"""How passes of several tenants are interleaved: counted in micro-batches, not in seconds."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrl.rpc.messages import CloseRun, ExecuteDone, RunSnapshotted, SnapshotRun
from openrl.worker.training_turns import divide_exactly
from tests.worker.lane_bench import Bench, create_bench
from tests.worker.rig import execute, open_run

FLOOD, OTHER, LIGHT = "flood:train:0", "flood:train:1", "light:train:0"
LARGE = 8192 * 20


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = create_bench(tmp_path)
    for run_id in (FLOOD, OTHER, LIGHT):
        bench.lane.push(open_run(run_id))
    bench.drain(1.0)
    yield bench
    bench.rig.blobs.close()


def push_pass(
    bench: Bench, seq_id: int, run_id: str, work_id: int, length: int, loss_fn: str = "cross_entropy"
) -> None:
    item = bench.rig.forward_backward(
        seq_id, run_id, tenant_id=run_id.split(":")[0], length=length, num_datums=1, loss_fn=loss_fn
    )
    bench.lane.push(execute(item, work_id=work_id))


def push_step(bench: Bench, seq_id: int, run_id: str, work_id: int) -> None:
    bench.lane.push(execute(bench.rig.optim_step(seq_id, run_id, tenant_id=run_id.split(":")[0]), work_id=work_id))


def done(bench: Bench) -> list[int]:
    """Work ids in the order in which they ended."""
    bench.rig.run()
    return [report.work_id for report in bench.rig.reports if isinstance(report, ExecuteDone)]


def test_a_light_step_comes_between_the_micro_batches_of_a_flood(bench: Bench):
    push_pass(bench, 1, FLOOD, 1, LARGE)
    push_pass(bench, 1, OTHER, 2, LARGE)
    bench.lane.advance()
    push_pass(bench, 1, LIGHT, 3, 2000)
    push_step(bench, 2, LIGHT, 4)
    while "light" in bench.lane.tenants():
        bench.lane.advance()
    assert bench.engine.passes == [FLOOD, LIGHT]
    assert bench.engine.weights[LIGHT] == -0.5
    bench.drain(float("inf"))
    assert done(bench) == [3, 4, 1, 2]


def test_a_turn_is_no_longer_than_half_of_what_a_light_tenant_comes_back_with(bench: Bench):
    push_pass(bench, 1, LIGHT, 1, 5000)
    bench.drain(float("inf"))
    push_pass(bench, 1, FLOOD, 2, 20_000)
    bench.lane.advance()
    assert bench.engine.sizes[1:] == [2048]
    push_pass(bench, 2, LIGHT, 3, 2000)
    bench.clock.now += 100.0
    bench.drain(float("inf"))
    assert max(bench.engine.sizes) == 8192  # nobody is waited for while all are there


def test_passes_of_one_tenant_and_of_equals_end_one_after_the_other(bench: Bench):
    push_pass(bench, 1, FLOOD, 1, 3000)
    push_pass(bench, 1, OTHER, 2, 3000)
    push_pass(bench, 1, LIGHT, 3, 3000)
    bench.drain(0.05)
    changes = [
        run for run, before in zip(bench.engine.passes, ["", *bench.engine.passes], strict=False) if run != before
    ]
    assert changes == [FLOOD, LIGHT, OTHER]


def test_a_step_and_a_snapshot_do_not_wait_for_another_runs_pass(bench: Bench):
    bench.engine.gradients[OTHER] = 1.0
    push_pass(bench, 1, FLOOD, 1, LARGE)
    bench.lane.advance()
    push_step(bench, 1, OTHER, 2)
    bench.lane.push(SnapshotRun(OTHER))
    bench.lane.push(CloseRun(OTHER))
    bench.lane.push(CloseRun(FLOOD))
    while OTHER in bench.engine.weights:
        bench.lane.advance()
    assert len(bench.engine.passes) <= 3
    assert FLOOD in bench.engine.weights  # its own close waits for its pass
    bench.drain(1.0)
    assert FLOOD not in bench.engine.weights
    assert done(bench) == [2, 1]
    assert [each.run_id for each in bench.rig.reports if isinstance(each, RunSnapshotted)] == [OTHER]


def test_a_pass_that_breaks_between_those_of_others_fails_alone(bench: Bench):
    push_pass(bench, 1, FLOOD, 1, LARGE)
    bench.lane.advance()
    push_pass(bench, 1, LIGHT, 2, 2000, loss_fn="explode")
    push_pass(bench, 2, LIGHT, 3, 2000)
    bench.drain(float("inf"))
    assert done(bench) == [2, 3, 1]
    failed = {r.work_id: bool(r.outcomes[0].error) for r in bench.rig.reports if isinstance(r, ExecuteDone)}
    assert failed == {1: False, 2: True, 3: False}
    assert bench.engine.gradients == {FLOOD: 1.0, OTHER: 0.0, LIGHT: 1.0}


def test_device_time_is_that_of_ones_own_turns(bench: Bench):
    push_pass(bench, 1, FLOOD, 1, LARGE)
    bench.lane.advance()
    push_pass(bench, 1, LIGHT, 2, 2000)
    bench.drain(float("inf"))
    bench.rig.run()
    busy_s = {r.work_id: r.outcomes[0].busy_s for r in bench.rig.reports if isinstance(r, ExecuteDone)}
    assert busy_s == {1: pytest.approx(LARGE * 50e-6), 2: pytest.approx(0.1)}


def test_a_pass_under_way_is_not_overtaken_by_tenant_after_tenant(bench: Bench):
    """With the whole credit for each, their second passes went before the rest of it too."""
    lights = [f"light{i}:train:0" for i in range(20)]
    for i, run_id in enumerate(lights):
        bench.lane.push(open_run(run_id))
        push_pass(bench, 0, run_id, 10 * i + 1000, 100)
    bench.drain(1.0)
    push_pass(bench, 1, OTHER, 1, LARGE)
    bench.engine.sizes.clear()
    while sum(bench.engine.sizes) < LARGE - 8192:
        bench.lane.advance()
    for i, run_id in enumerate(lights):
        for seq_id in (1, 2, 3):
            push_pass(bench, seq_id, run_id, 10 * i + seq_id + 1, 8000)
    bench.drain(float("inf"))
    assert done(bench).index(1) - len(lights) <= 30


COMMANDS = st.tuples(
    st.sampled_from([FLOOD, OTHER, LIGHT, "third:train:0", "fourth:train:0"]),
    st.sampled_from(["pass", "bad pass", "step", "snapshot"]),
    st.integers(1, 30_000),
    st.integers(0, 3),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(COMMANDS, max_size=25), st.sampled_from([0.05, float("inf")]))
def test_every_command_ends_once_and_every_run_keeps_its_order(commands: list[tuple[str, str, int, int]], max_s: float):
    """`turns` of the lane lie between a command and the next."""
    with TemporaryDirectory() as directory:
        bench = create_bench(Path(directory))
        order: defaultdict[str, list[int]] = defaultdict(list)
        for run_id in {run_id for run_id, *_ in commands}:
            bench.lane.push(open_run(run_id))
        for seq_id, (run_id, kind, length, turns) in enumerate(commands):
            if kind == "snapshot":
                bench.lane.push(SnapshotRun(run_id))
            else:
                order[run_id].append(seq_id)
                if kind == "step":
                    push_step(bench, seq_id, run_id, seq_id)
                else:
                    push_pass(
                        bench, seq_id, run_id, seq_id, length, "explode" if kind == "bad pass" else "cross_entropy"
                    )
            for _ in range(turns):
                if bench.lane.tenants():
                    bench.lane.advance(max_s)
        bench.drain(max_s)
        ended = done(bench)
        bench.rig.blobs.close()
        assert sorted(ended) == sorted(seq_id for numbers in order.values() for seq_id in numbers)
        for numbers in order.values():
            assert [seq_id for seq_id in ended if seq_id in numbers] == numbers


@given(seconds=st.floats(0, 1e4), tokens=st.lists(st.integers(0, 10**6), min_size=1, max_size=40))
def test_the_parts_of_a_pass_add_up_to_its_device_time(seconds: float, tokens: list[int]):
    parts = divide_exactly(seconds, tokens)
    assert sum(round(part * 1e6) for part in parts) == round(seconds * 1e6)
    weights = tokens if any(tokens) else [1] * len(tokens)
    assert all(abs(part - seconds * w / sum(weights)) < 2e-6 for part, w in zip(parts, weights, strict=True))
