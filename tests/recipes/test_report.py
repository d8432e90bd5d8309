import io
import json
from pathlib import Path

from rich.console import Console

from recipes import text_to_sql
from recipes.run import read_config, settings_of
from recipes.text_to_sql.evaluation import Evaluation
from recipes.text_to_sql.portability import Portability
from recipes.text_to_sql.progress import Monitor
from recipes.text_to_sql.report import results_table, write_curves, write_json
from recipes.text_to_sql.settings import Settings

CONFIG = Path(text_to_sql.__file__).parent / "config.toml"
EVALUATIONS = {
    "base": Evaluation(0.0, 0.1, 4, {1: 0.0, 2: 0.0}, (("q", "SELECT 1", "wrong"),)),
    "after RL": Evaluation(0.75, 0.9, 4, {1: 1.0, 2: 0.5}, (("q", "SELECT 2", "correct"),)),
}


def monitor_with_steps() -> Monitor:
    monitor = Monitor(Console(quiet=True))
    monitor.phase("warm-up", 1).step(value=1.5, num_tokens=100)
    monitor.phase("reinforcement", 1).step(value=0.4, num_tokens=100, accuracy=0.3)
    return monitor


def test_the_table_shows_each_stage_by_level():
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(results_table(EVALUATIONS, 34))
    text = console.export_text()
    assert "pass@4" in text
    assert "75%" in text
    assert "level 2" in text


def test_the_json_holds_everything_that_was_measured(tmp_path: Path):
    settings = settings_of(Settings, read_config(CONFIG, "quick", ["seed=7"]))
    records = monitor_with_steps().records
    write_json(tmp_path / "r.json", settings, records, EVALUATIONS, Portability(1e-5, 1e-6, 90), 12.34)
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["seed"] == 7
    assert content["evaluations"]["after RL"]["greedy"] == 0.75
    assert [step["phase"] for step in content["steps"]] == ["warm-up", "reinforcement"]
    assert content["portability"]["max_difference"] == 1e-5
    assert content["settings"]["rank"] == settings.rank


def test_the_curves_are_a_picture(tmp_path: Path):
    write_curves(tmp_path / "c.png", monitor_with_steps().records, EVALUATIONS)
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_a_difference_of_rounding_is_the_same_and_a_larger_one_is_not():
    assert Portability(9e-4, 1e-5, 10).verdict == "the same as"
    assert Portability(0.7, 0.04, 10).verdict == "as close as bfloat16 is to"
    assert Portability(0.7, 0.2, 10).verdict == "NOT the same as"
