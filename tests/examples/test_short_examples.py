"""The two shortest examples, run as a reader would: quickly over the tiny model, slowly over the real one."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tinker
from examples.arithmetic_rlvr import datums_of, mean_reward
from examples.pig_latin_sft import pig_latin

from openrl.model.downloads import DEFAULT_MODELS_DIR
from tests.live_server import MODEL_NAME, LiveServer, start_server

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = ("pig_latin_sft.py", "arithmetic_rlvr.py")
REAL_MODEL = "smollm2-135m-instruct"


def run(script: str, *options: str, server: LiveServer | None) -> subprocess.CompletedProcess[str]:
    """The script to its end, with the variables that `openrl serve` prints, or without."""
    variables = {"TINKER_BASE_URL": server.url, "TINKER_API_KEY": server.key} if server else {}
    others = {name: value for name, value in os.environ.items() if not name.startswith("TINKER_")}
    return subprocess.run(
        (sys.executable, str(EXAMPLES / script), *options),
        env=others | variables | {"TINKER_TELEMETRY": "0"},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_short_example_runs_to_its_end(script: str, server: LiveServer, tiny_model_dir: Path):
    done = run(script, "--model", MODEL_NAME, "--model-dir", str(tiny_model_dir), "--steps", "2", server=server)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "step  2/2" in done.stdout
    assert re.search(r"held-out .* before, .* after", done.stdout)


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_a_key_a_short_example_says_which_variable_is_missing(script: str):
    done = run(script, server=None)
    assert done.returncode == 2
    assert "TINKER_API_KEY" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_a_tokenizer_a_short_example_names_the_file(script: str, server: LiveServer, tmp_path: Path):
    done = run(script, "--model-dir", str(tmp_path), server=server)
    assert done.returncode == 2
    assert str(tmp_path / "tokenizer.json") in done.stderr.replace("\n", "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_short_example_is_short(script: str):
    assert len((EXAMPLES / script).read_text().splitlines()) < 100


@pytest.mark.parametrize(("word", "answer"), [("banana", "ananabay"), ("street", "eetstray"), ("apple", "appleay")])
def test_pig_latin_moves_what_stands_before_the_first_vowel(word: str, answer: str):
    assert pig_latin(word) == answer


def sampled(*tokens: int) -> tinker.SampledSequence:
    logprobs = np.full(len(tokens), -0.5, np.float32)
    return tinker.SampledSequence(
        stop_reason="stop", sequence_id="s", tokens_np=np.array(tokens, np.int32), logprobs_np=logprobs
    )


def test_right_answers_get_likelier_and_wrong_ones_less_likely():
    right, wrong = datums_of([1, 2, 3], [sampled(4, 5), sampled(6)], [1.0, 0.0])
    assert right.model_input.to_ints() == [1, 2, 3, 4]
    assert right.loss_fn_inputs["target_tokens"].data == [2, 3, 4, 5]
    assert right.loss_fn_inputs["logprobs"].data == [0.0, 0.0, -0.5, -0.5]
    assert right.loss_fn_inputs["advantages"].data == [0.0, 0.0, 1.0, 1.0]
    assert wrong.loss_fn_inputs["advantages"].data == [0.0, 0.0, -1.0]


def test_a_group_of_equal_rewards_trains_nothing():
    assert datums_of([1, 2, 3], [sampled(4), sampled(5)], [1.0, 1.0]) == []


def test_the_mean_reward_is_taken_over_all_answers():
    groups = [([1], [sampled(4), sampled(5)], [1.0, 0.0]), ([2], [sampled(4), sampled(5)], [1.0, 1.0])]
    assert mean_reward(groups) == 0.75


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
def test_a_real_model_learns_pig_latin(real_server: LiveServer):
    done = run("pig_latin_sft.py", server=real_server)
    score = re.search(r"right: (\d+) of 20 before, (\d+) after", done.stdout)
    assert score, done.stderr[-2000:]
    before, after = map(int, score.groups())
    assert before <= 2
    assert after >= 12


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_real_model_learns_to_add(real_server: LiveServer):
    done = run("arithmetic_rlvr.py", server=real_server)
    score = re.search(r"right: (\d+)% before, (\d+)% after", done.stdout)
    assert score, done.stderr[-2000:]
    before, after = map(int, score.groups())
    assert after >= before + 20
