import json
from pathlib import Path

import pytest

from recipes.report import draw, read_runs, table


@pytest.fixture
def directories(tmp_path: Path) -> list[Path]:
    for seed, after in ((1, 0.75), (0, 0.25)):
        home = tmp_path / f"run-{seed}"
        home.mkdir()
        content = {"settings": {"seed": seed}, "seconds": 10.0, "values": {"before": 0.0, "after": after}}
        (home / "result.json").write_text(json.dumps(content))
        (home / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "reward": 0.75}\n')
    return sorted(tmp_path.iterdir(), reverse=True)


def test_the_table_has_every_seed_and_their_mean_and_spread(directories: list[Path]):
    lines = table(read_runs(directories)).splitlines()
    assert lines[0] == "| | seed 0 | seed 1 | mean ± spread |"
    assert "| after | 0.25 | 0.75 | **0.5 ± 0.354** |" in lines


def test_the_curve_is_a_small_picture(directories: list[Path], tmp_path: Path):
    draw(read_runs(directories), "reward", tmp_path / "curve.svg")
    assert "<svg" in (tmp_path / "curve.svg").read_text()
    assert (tmp_path / "curve.svg").stat().st_size < 60_000
