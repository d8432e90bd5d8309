"""Reinforcement recipes: every loss, substeps, asynchronous and streamed batches, graded and counted tasks."""

import pytest

from tests.cookbook.chat_model import SERVED_NAME
from tests.cookbook.recipes import FRESH, GRADE_SCHOOL, MODEL, Recipes, Run

MATH = ("groups_per_batch=8", "group_size=4", "max_tokens=5", "max_steps=3", "eval_every=0", "compute_post_kl=True")
NO_THINKING = "renderer_name=qwen3_disable_thinking"
GRADER = (f"grader_llm_name={SERVED_NAME}", "grader_renderer_name=qwen3_disable_thinking")


def largest_kl(run: Run) -> float:
    """Of sampler and trainer, at any step."""
    return max(abs(value) for value in run.values("optim/kl_sample_train_v2"))


@pytest.mark.parametrize(
    "loss",
    [
        (),
        ("loss_fn=ppo", "num_substeps=2", 'loss_fn_config={"clip_low_threshold":0.9,"clip_high_threshold":1.1}'),
        ("loss_fn=cispo", "num_substeps=2"),
        ("loss_fn=importance_sampling",),
        ("stream_minibatch_config.groups_per_batch=8", "stream_minibatch_config.num_minibatches=2"),
    ],
    ids=["stable_reinforce", "ppo", "cispo", "importance_sampling", "streamed"],
)
def test_math_rl_trains_on_the_policy_that_sampled(recipes: Recipes, loss: tuple[str, ...]):
    run = recipes.run("math_rl.train", MODEL, FRESH, *MATH, *loss)
    # A second substep trains weights that are one step ahead of those that sampled.
    bound = 1e-3 if "num_substeps=2" in loss else 1e-5
    assert len(run.values("optim/kl_sample_train_v2")) == 3
    assert largest_kl(run) <= bound
    assert all(value > 0 for value in run.values("grad_norm"))
    recipes.note(run, f"KL of sampler and trainer ≤ {bound:.0e}, gradients", f"{largest_kl(run):.0e}")


def test_math_rl_trains_asynchronously(recipes: Recipes):
    options = ("groups_per_batch=8", "group_size=4", "max_tokens=5", "max_steps=4", "eval_every=0")
    run = recipes.run("math_rl.train", MODEL, FRESH, *options, "max_steps_off_policy=2", "learning_rate=0.0001")
    assert len(run.values("grad_norm")) == 4
    assert largest_kl(run) <= 0.01
    recipes.note(run, "4 steps, KL to older samplers ≤ 0.01", f"{largest_kl(run):.0e}")


def test_rl_basic_reads_grade_school_math(recipes: Recipes):
    run = recipes.run("rl_basic", MODEL, *GRADE_SCHOOL, "max_tokens=16", "max_steps=2")
    assert largest_kl(run) <= 1e-5
    recipes.note(run, "KL of sampler and trainer ≤ 1e-5", f"{largest_kl(run):.0e}")


def test_rl_numerics_check_finds_equal_numbers_over_many_turns(recipes: Recipes):
    task = ("task.num_pages_min=2", "task.num_pages_max=3", "task.page_chars=200")
    size = ("groups_per_batch=4", "group_size=4", "max_tokens=16", "max_steps=2")
    run = recipes.run("rl_numerics_check.train", MODEL, FRESH, *size, *task)
    assert largest_kl(run) <= 1e-5
    recipes.note(run, "KL of sampler and trainer ≤ 1e-5", f"{largest_kl(run):.0e}")


def test_a_rubric_is_graded_by_a_second_model(recipes: Recipes):
    made = recipes.run("rubric.generate_data", own_log=True)
    assert "10000" in made.output
    recipes.note(made, "writes its data", "11,000 rows")
    size = ("groups_per_batch=4", "train_group_size=2", "max_tokens=16", "max_steps=2", "eval_every=0")
    for recipe in ("rubric.train", "rubric.prometheus_experimental"):
        run = recipes.run(recipe, MODEL, FRESH, NO_THINKING, *GRADER, *size)
        assert largest_kl(run) <= 1e-5
        recipes.note(run, "KL of sampler and trainer ≤ 1e-5", f"{largest_kl(run):.0e}")


def test_a_rubric_environment_is_tried_alone(recipes: Recipes):
    run = recipes.run("rubric.debug_env", own_log=True)
    recipes.note(run, "one rollout with its grades", "done")


def test_forecasts_are_rewarded_and_evaluated(recipes: Recipes):
    data = f"data_path={recipes.workspace / 'prophet.csv'}"
    size = ("group_size=2", "groups_per_batch=4", "validation_group_size=1", "max_tokens=8", "max_steps=2")
    run = recipes.run("forecasting.train", MODEL, FRESH, NO_THINKING, data, *size, "eval_every=2")
    assert largest_kl(run) <= 1e-5
    assert len(run.values("test/env/all/brier_reward")) == 2
    recipes.note(run, "KL of sampler and trainer ≤ 1e-5; validation before and after", f"{largest_kl(run):.0e}")
