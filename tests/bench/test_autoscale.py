import json
from dataclasses import replace
from pathlib import Path

import pytest
from bench.autoscale import Report, Scaler, Simulation, play, problems
from bench.load_trace import HOUR, Step, loop, rates_of, read_trace, repeated, seeded_trace

from openrl.cli.recording import recorded
from openrl.config import PoolConfig
from openrl.store.ledger import RequestLoad, SessionLoad

POOL = PoolConfig(models=("m",), runs_per_worker=4)
TRACES = Path(__file__).parents[2] / "bench" / "traces"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_pool_follows_two_days_of_load_to_zero_and_back(seed: int):
    report, found = play(seeded_trace(seed), is_recorded=False, seed=seed)
    assert not found
    assert report.most_workers > 2
    assert report.runs_moved < report.requests / 20


def test_a_pool_follows_load_that_was_recorded():
    report, found = play(read_trace(TRACES / "sft_then_rl.jsonl"), is_recorded=True)
    assert not found
    assert report.most_workers > 1
    assert report.starts_from_zero == 3


def test_one_long_session_keeps_one_worker_from_its_begin_to_the_end_of_the_cooldown():
    session = loop(600.0, "t", 40, 4000, think_s=100.0)
    report = Simulation([session], POOL, Scaler(lost_polls=0.0)).run(2 * HOUR)
    assert (report.most_workers, report.starts_from_zero, report.runs_moved) == (1, 1, 0)
    assert report.longest_wait_s <= 30.0 + 180.0 + 10.0
    assert report.live_hours * HOUR + 600 < report.worker_hours * HOUR < report.live_hours * HOUR + 1100


def test_the_bounds_find_what_is_wrong():
    good = Report(requests=1, worker_hours=1.0, needed_hours=1.0, hours_at_zero=1.0, starts_from_zero=2)
    assert not problems(good, Scaler(), POOL)
    for wrong in (
        {"unfinished": 1},
        {"longest_wait_s": 900.0},
        {"worker_hours": 4.0},
        {"hours_at_zero": 0.0},
        {"removed_though_a_cheaper_one_was_there": 1},
    ):
        assert len(problems(replace(good, **wrong), Scaler(), POOL)) == 1


def test_a_trace_is_read_as_it_was_recorded(tmp_path: Path):
    first = RequestLoad("forward_backward", "tiny", "r", 1010.0, 1012.0, 600, 500, 1.5)
    meanwhile = RequestLoad("optim_step", "tiny", "r", 1010.5, 1012.5, 0, 0, 0.25)
    later = RequestLoad("sample", "tiny", "", 1015.0, 1016.0, 300, 100, 0.75)
    lost = replace(later, created_at=1020.0, finished_at=None, busy_s=0.0)
    loads = [
        SessionLoad("s", "alice", 900.0, 1030.0, (first, meanwhile, later, lost)),
        SessionLoad("idle", "bob", 1001.0, None, ()),
    ]
    lines = list(recorded(loads, 1000.0, 2000.0, b"salt"))
    assert not any(name in line for line in lines for name in ("alice", "bob", '"s"', "idle"))
    (tmp_path / "trace.jsonl").write_text("\n".join(lines))
    (spec,) = read_trace(tmp_path / "trace.jsonl")
    assert spec.tenant == json.loads(lines[0])["tenant"] != json.loads(lines[1])["tenant"]
    assert (spec.start_s, spec.rest_s, spec.num_runs, spec.model) == (0.0, 10.0, 1, "tiny")
    assert spec.steps == (
        Step(10.0, (600.0, 0.0), (1.75, 0.0)),
        Step(2.5, (0.0, 300.0), (0.0, 0.75)),
        Step(4.0, (0.0, 300.0), (0.0, 0.0)),
    )
    assert rates_of([spec]) == (600 / 1.75, 600 / 0.75)
    assert [each.start_s for each in repeated([spec], 3, 100.0)] == [0.0, 100.0, 200.0]
