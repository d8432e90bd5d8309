import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from bench.autoscale import HOUR, MODEL, Report, Scaler, SessionSpec, Simulation, problems, read_trace, seeded_trace

from openrl.config import PoolConfig

POOL = PoolConfig(models=(MODEL,), role="train", runs_per_worker=4)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_pool_follows_two_days_of_load_to_zero_and_back(seed: int):
    report = Simulation(seeded_trace(seed), POOL, Scaler(), seed).run(2 * HOUR)
    assert not problems(report, Scaler(), POOL)
    assert report.most_workers > 2
    assert report.runs_moved < report.requests / 20


def test_one_long_session_keeps_one_worker_from_its_begin_to_the_end_of_the_cooldown():
    session = SessionSpec(start_s=600.0, tenant="t", steps=40, tokens=4000, think_s=100.0)
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
    trace = seeded_trace(5, days=1)
    (tmp_path / "trace.json").write_text(json.dumps([asdict(each) for each in trace]))
    assert read_trace(tmp_path / "trace.json") == trace
