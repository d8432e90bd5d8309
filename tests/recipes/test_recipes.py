"""Every recipe, run as a reader would: quickly over the tiny model, slowly over the real one."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from openrl.model.downloads import DEFAULT_MODELS_DIR
from recipes.pig_latin.train import main as pig_latin
from tests.live_server import MODEL_NAME, LiveServer, start_server

ROOT = Path(__file__).parents[2]
SHORT = {
    "pig_latin": ("batch=2",),
    "arithmetic": ("prompts=2", "samples=2", "held_out=2"),
    "tool_use": ("sft_steps=1", "prompts=1", "samples=2", "held_out=2"),
    "preference": ("pairs=2", "samples=1"),
    "distillation": ("teacher_steps=1", "prompts=2", "samples=2", "held_out=2"),
    "off_policy": ("prompts=2", "samples=2", "held_out=2", "reward_s=0.0"),
}
"""What makes each recipe's steps small."""
ONE_AFTER_ANOTHER = """
import importlib, json, sys
for recipe, arguments in json.loads(sys.argv[1]).items():
    sys.argv = arguments
    importlib.import_module(f"recipes.{recipe}.train").main()
"""
REAL_MODEL = "smollm2-135m-instruct"


def begin(out: Path, commands: Mapping[str, Sequence[str]], **variables: str) -> "subprocess.CompletedProcess[str]":
    """Recipes with NAME=VALUE settings to their ends, one after another in one interpreter that imports things once."""
    arguments = {
        recipe: ["train.py", "--out", str(out / recipe), *(word for pair in settings for word in ("--set", pair))]
        for recipe, settings in commands.items()
    }
    others = {name: value for name, value in os.environ.items() if not name.startswith("TINKER_")}
    return subprocess.run(
        (sys.executable, "-c", ONE_AFTER_ANOTHER, json.dumps(arguments)),
        env={**others, "PYTHONPATH": f"{ROOT}/src:{ROOT}", "TINKER_TELEMETRY": "0", **variables},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def variables_of(server: LiveServer) -> dict[str, str]:
    """What `openrl serve` prints."""
    return {"TINKER_BASE_URL": server.url, "TINKER_API_KEY": server.key, "TINKER_TELEMETRY": "0"}


def result(out: Path) -> dict[str, float]:
    """The held-out figures that a run noted."""
    return json.loads((out / "result.json").read_text())["values"]


@pytest.fixture(scope="module")
def finished(server: LiveServer, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the results of every recipe, after two steps of it."""
    out, model = tmp_path_factory.mktemp("recipes"), (f"model={MODEL_NAME}", f"model_dir={tiny_model_dir}", "steps=2")
    done = begin(out, {recipe: (*model, *short) for recipe, short in SHORT.items()}, **variables_of(server))
    assert done.returncode == 0, done.stderr[-2000:]
    return out


@pytest.mark.parametrize("recipe", SHORT)
def test_a_recipe_runs_to_its_end(recipe: str, finished: Path):
    steps = [json.loads(line)["step"] for line in (finished / recipe / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2]
    assert {"before", "after"} <= result(finished / recipe).keys()


def test_text_to_sql_runs_to_its_end_where_peft_loads_the_adapter(
    server: LiveServer, tiny_model_dir: Path, tmp_path: Path
):
    small = ("max_level=1", "max_tokens=3", "sft_steps=1", "sft_batch=1", "rl_prompts=1", "rl_samples=2")
    settings = (f"model={MODEL_NAME}", f"model_dir={tiny_model_dir}", "steps=1", "eval_questions=1", "eval_samples=1")
    done = begin(tmp_path, {"text_to_sql": (*settings, *small)}, **variables_of(server))
    assert done.returncode == 0, done.stderr[-2000:]
    assert {"before", "after_sft", "after"} <= result(tmp_path / "text_to_sql").keys()
    assert "log-probabilities are the same as the server's" in " ".join(done.stdout.split())


def test_a_recipe_is_the_program_of_a_study(server: LiveServer, tiny_model_dir: Path, tmp_path: Path):
    params = {"model": MODEL_NAME, "model_dir": str(tiny_model_dir), "steps": 2, "batch": 2, "learning_rate": 2e-4}
    (tmp_path / "params.json").write_text(json.dumps({"params": params, "seed": 3, "project_id": None}))
    places = {"PYTHONPATH": f"{ROOT}/src:{ROOT}", "OPENRL_ATTEMPT_DIR": str(tmp_path)}
    done = subprocess.run(
        (sys.executable, "-m", "recipes.pig_latin.train"),
        env={**os.environ, **variables_of(server), **places}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    reports = [json.loads(line) for line in (tmp_path / "reports.jsonl").read_text().splitlines()]
    assert [report["step"] for report in reports] == [1, 2, 2]
    assert "after" in reports[-1]["values"]
    noted = json.loads((tmp_path / "result.json").read_text())["settings"]
    assert (noted["seed"], noted["learning_rate"]) == (3, 2e-4)


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What pig latin says when it refuses its command line, before it connects to anything."""
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as raised:
        pig_latin()
    assert raised.value.code == 2
    return capsys.readouterr().err.replace("\n", "")


def test_without_a_key_a_recipe_says_which_variable_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    assert "TINKER_API_KEY" in refusal(monkeypatch, capsys)


def test_without_a_tokenizer_a_recipe_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("TINKER_API_KEY", "tml-none")
    assert str(tmp_path / "tokenizer.json") in refusal(monkeypatch, capsys, "--set", f"model_dir={tmp_path}")


def test_a_setting_that_does_not_exist_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert "'stepz'" in refusal(monkeypatch, capsys, "--set", "stepz=3")


@pytest.mark.parametrize("recipe", sorted(path.parent.name for path in (ROOT / "recipes").glob("*/train.py")))
def test_a_recipe_is_short(recipe: str):
    assert len((ROOT / "recipes" / recipe / "train.py").read_text().splitlines()) <= 165


@pytest.fixture(scope="module")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    model = DEFAULT_MODELS_DIR / REAL_MODEL
    if not model.is_dir():
        pytest.fail(f"run `openrl models fetch {REAL_MODEL}` first")
    live = start_server(model, tmp_path_factory.mktemp("real-server"), name=REAL_MODEL)
    yield live
    live.stop()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("recipe", "gain"),
    [("pig_latin", 0.5), ("arithmetic", 0.2), ("distillation", 0.15)],
)
def test_a_real_model_learns(real_server: LiveServer, recipe: str, gain: float, tmp_path: Path):
    done = begin(tmp_path, {recipe: ()}, **variables_of(real_server))
    assert done.returncode == 0, done.stderr[-2000:]
    after, before = (result(tmp_path / recipe)[name] for name in ("after", "before"))
    assert after >= before + gain
