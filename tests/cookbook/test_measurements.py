"""Recipes that score: steps of a thought, choices, and forecasts as choices."""

import json

from tests.cookbook.chat_model import SERVED_NAME
from tests.cookbook.recipes import FRESH, MODEL, Recipes


def test_steps_of_a_thought_are_scored(recipes: Recipes):
    fixed = recipes.run("true_thinking_score.run_small_experiment", own_log=True)
    results = json.loads((recipes.workspace / "runs" / "tts-experiment" / "tts_results.json").read_text())
    assert not [problem for problem in results["problems"] if "error" in problem]
    recipes.note(fixed, "every problem scored, none failed", f"{results['aggregate']['n_problems']} problems")
    options = ("n_problems=2", "dataset=gsm8k", "max_tokens=64")
    run = recipes.run("true_thinking_score.analyze", MODEL, *options)
    assert "Failed" not in run.output
    recipes.note(run, "every problem scored, none failed", "2 problems")


def test_a_choice_is_scored_by_target_prompt_logprobs(recipes: Recipes):
    questions = "How do I log in?\nWhat does it cost?\n"
    run = recipes.run("decisions.demo", f"--model_name={SERVED_NAME}", answers=questions, own_log=True)
    found = [json.loads("{" + part.split("}")[0] + "}") for part in run.output.split("{")[1:]]
    assert len(found) == 2
    totals = [sum(answer.values()) for answer in found]
    assert all(abs(total - 1) < 1e-3 for total in totals)
    recipes.note(run, "probabilities of four choices sum to 1", f"{totals[0]:.4f}")


def test_forecasts_are_trained_as_choices_with_a_loss_of_their_own(recipes: Recipes):
    data = f"data_path={recipes.workspace / 'prophet.csv'}"
    run = recipes.run("decisions.forecasting", MODEL, FRESH, data, "batch_size=4", "max_steps=3")
    assert len(run.values("train/loss")) == 3
    scores = run.values("test/brier_reward")
    assert len(scores) == 2
    assert all(0 <= score <= 1 for score in scores)
    recipes.note(
        run, "custom loss over (N, K) targets; validation before and after", f"{scores[0]:.2f}, {scores[1]:.2f}"
    )
