"""What the library has beside its recipes: a chat, a game to play by hand, evaluators, benchmarks, a viewer of data."""

import re

from tests.cookbook.chat_model import SERVED_NAME
from tests.cookbook.recipes import FRESH, MODEL, ROOT, Recipes

LIBRARY = "tinker_cookbook"
BENCHMARKS = ("gsm8k", "math500")


def test_a_chat_answers_from_saved_weights(recipes: Recipes):
    data = f"dataset={recipes.workspace / 'conversations.jsonl'}"
    trained = recipes.run("chat_sl.train", MODEL, FRESH, data, "batch_size=8", "max_steps=1")
    path = f"model_path={trained.checkpoints[-1]['sampler_path']}"
    options = (f"base_model={SERVED_NAME}", path, "max_tokens=8")
    said = "17+1?\nAnd 18+1?\nn\nquit\n"
    run = recipes.run("chat_app.tinker_chat_cli", *options, own_log=True, package=LIBRARY, answers=said)
    assert run.output.count("Assistant: ") == 2
    assert "Error" not in run.output
    recipes.note(run, "two questions answered from saved weights", "done")


def test_a_game_is_played_by_hand_against_a_served_model(recipes: Recipes):
    asked = "Is it big?\n\n\nIs it an apple?\n\n\n" + "apple?\n\n\n" * 20
    run = recipes.run("rl.play_w_env", own_log=True, package=LIBRARY, answers=asked)
    steps = int(re.findall(r"Total steps: (\d+)", run.output)[0])
    assert steps > 1
    recipes.note(run, "a person asks, the model answers, until the game ends", f"{steps} turns")


def test_calls_of_tools_are_asked_for_and_parsed(recipes: Recipes):
    run = recipes.run("scripts.test_tool_calling_e2e", "--model", "Qwen3.5-9B", own_log=True, package=LIBRARY)
    assert "Raw response" in run.output
    assert "Error -" not in run.output
    recipes.note(run, "answered and parsed; a random model calls no tool", "done")


def test_an_evaluator_of_ones_own_samples(recipes: Recipes):
    run = recipes.run("eval.custom_evaluators", own_log=True, package=LIBRARY)
    assert "{'accuracy': 0.0}" in run.output
    recipes.note(run, "three questions, none answered right by a random model", "accuracy 0")


def test_benchmarks_measure_without_errors(recipes: Recipes):
    run = recipes.script(
        ROOT / "tests" / "cookbook" / "benchmarks_call.py", "eval.benchmarks", SERVED_NAME, *BENCHMARKS
    )
    measured = re.findall(r"measured (\w+) (\d+) (\d+)", run.output)
    assert sorted(name for name, *_ in measured) == sorted(BENCHMARKS)
    assert {(examples, errors) for _, examples, errors in measured} == {("8", "0")}
    recipes.note(run, "`run_benchmarks`: examples of each, errors", "8, 0")


def test_a_data_set_is_shown(recipes: Recipes):
    options = ("model_name=Qwen/Qwen3-8B", "dataset_path=NoRobotsBuilder", "renderer_name=qwen3")
    run = recipes.run("supervised.viz_sft_dataset", *options, own_log=True, package=LIBRARY, answers="\n" * 200)
    shown = run.output.count("press enter")
    assert shown == 100
    recipes.note(run, "examples with their trained parts in colour; asks no server", f"{shown} examples")
