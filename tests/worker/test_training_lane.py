"""How a lane divides a pass into turns of the length it is given."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from openrl.rpc.messages import ExecuteDone
from tests.worker.lane_bench import STEP_S, Bench, create_bench
from tests.worker.rig import execute, open_run


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = create_bench(tmp_path)
    yield bench
    bench.rig.blobs.close()


def test_a_pass_is_divided_into_turns_that_fit_once_it_has_been_measured(bench: Bench):
    bench.lane.push(open_run())
    bench.lane.push(execute(bench.rig.forward_backward(1, length=20_000, num_datums=1)))
    turns = bench.drain(0.1)
    assert bench.engine.sizes[:2] == [1024, 1536]
    assert max(turns) <= 0.1
    assert sum(bench.engine.sizes) == 20_000


def test_a_pass_that_nobody_waits_for_runs_in_the_engines_own_micro_batches(bench: Bench):
    bench.lane.push(open_run())
    bench.lane.push(execute(bench.rig.forward_backward(1, length=20_000, num_datums=1)))
    bench.drain(float("inf"))
    assert bench.engine.sizes == [8192, 8192, 3616]


def test_optimizer_steps_of_many_runs_are_divided_and_all_reported(bench: Bench):
    run_ids = [f"s{i}:train:0" for i in range(12)]
    for run_id in run_ids:
        bench.lane.push(open_run(run_id))
        bench.engine.gradients[run_id] = 1.0
    bench.drain(0.1)
    for run_id in run_ids:
        bench.engine.gradients[run_id] = 1.0
    bench.lane.push(execute(*(bench.rig.optim_step(i, run_id) for i, run_id in enumerate(run_ids, 1))))
    bench.lane.push(execute(bench.rig.optim_step(99, "gone:train:0")))
    turns = bench.drain(0.1 + 1e-9)
    assert [round(turn / STEP_S) for turn in turns] == [5, 5, 2, 0]
    bench.rig.run()
    first, second = (report for report in bench.rig.reports if isinstance(report, ExecuteDone))
    assert [outcome.error for outcome in first.outcomes] == [""] * 12
    assert second.outcomes[0].error == "run gone:train:0 is not open on this worker"
    assert np.allclose([bench.engine.weights[run_id] for run_id in run_ids], -0.5)


def test_tenants_take_turns_and_a_run_keeps_its_order(bench: Bench):
    alice, bob = "a:train:0", "b:train:0"
    for run_id in (alice, bob):
        bench.lane.push(open_run(run_id))
    bench.drain(1.0)
    alices = [bench.rig.forward_backward(i, alice, tenant_id="alice") for i in (1, 2, 3)]
    shared = bench.rig.forward_backward(4, alice, tenant_id="carol")
    bobs = [bench.rig.forward_backward(i, bob, tenant_id="bob") for i in (1, 2)]
    for work_id, item in enumerate((*alices, shared, *bobs), 1):
        bench.lane.push(execute(item, work_id=work_id))
    bench.drain(1.0)
    bench.rig.run()
    done = [report.work_id for report in bench.rig.reports if isinstance(report, ExecuteDone)]
    assert done == [1, 5, 2, 6, 3, 4]


def test_a_lane_knows_whose_work_it_has(bench: Bench):
    assert not bench.lane.tenants()
    bench.lane.push(open_run())
    bench.lane.push(execute(bench.rig.forward_backward(1, tenant_id="t7")))
    assert set(bench.lane.tenants()) == {"t1", "t7"}
    bench.lane.advance()
    assert set(bench.lane.tenants()) == {"t7"}
    bench.drain(0.1)
    assert not bench.lane.tenants()
