"""Recipes that measure a model without training it."""

import json

from tests.cookbook.chat_model import SERVED_NAME
from tests.cookbook.recipes import MODEL, NO_LOG, Recipes


def test_steps_of_a_thought_are_scored(recipes: Recipes):
    fixed = recipes.run("true_thinking_score.run_small_experiment", NO_LOG)
    results = json.loads((recipes.workspace / "runs" / "tts-experiment" / "tts_results.json").read_text())
    assert not [problem for problem in results["problems"] if "error" in problem]
    recipes.note(fixed, "every problem scored, none failed", f"{results['aggregate']['n_problems']} problems")
    options = ("n_problems=2", "dataset=gsm8k", "max_tokens=64")
    run = recipes.run("true_thinking_score.analyze", MODEL, *options)
    assert "Failed" not in run.output
    recipes.note(run, "every problem scored, none failed", "2 problems")


def test_a_choice_is_scored_by_target_prompt_logprobs(recipes: Recipes):
    questions = "How do I log in?\nWhat does it cost?\n"
    run = recipes.run("decisions.demo", NO_LOG, f"--model_name={SERVED_NAME}", answers=questions)
    found = [json.loads("{" + part.split("}")[0] + "}") for part in run.output.split("{")[1:]]
    assert len(found) == 2
    totals = [sum(answer.values()) for answer in found]
    assert all(abs(total - 1) < 1e-3 for total in totals)
    recipes.note(run, "probabilities of four choices sum to 1", f"{totals[0]:.4f}")
