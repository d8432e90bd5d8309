"""Supervised recipes: losses fall, checkpoints are there, sweeps and pipelines come to their end."""

import json

from tests.cookbook.chat_model import SERVED_NAME
from tests.cookbook.recipes import FRESH, MODEL, RESUME, Recipes, Run, interrupted

CHAT = ("batch_size=8", "save_every=2", "rolling_save_every=1", "eval_every=2", "learning_rate=0.001")


def falls(run: Run, metric: str = "train_mean_nll") -> str:
    """The first and the last value, the last being the smaller."""
    values = run.values(metric)
    assert values[-1] < values[0]
    return f"{values[0]:.2f} → {values[-1]:.2f}"


def test_chat_sl_saves_as_it_goes_and_resumes(recipes: Recipes):
    options = (MODEL, f"dataset={recipes.workspace / 'conversations.jsonl'}", *CHAT)
    run = recipes.run("chat_sl.train", FRESH, *options, "max_steps=4")
    recipes.note(run, "loss falls; periodic, rolling and final checkpoints", falls(run))
    saved = run.checkpoints
    assert saved[-1]["name"] == "final"
    assert saved[-1]["sampler_path"].startswith("tinker://")
    assert any(each.get("rolling") for each in saved)
    log = interrupted(run, "000002", recipes.new_log("chat_sl"))
    resumed = recipes.run("chat_sl.train", RESUME, *options, "max_steps=6", log=log)
    assert [step["step"] for step in resumed.metrics] == [2, 3, 4, 5]
    recipes.note(resumed, "goes on from the checkpoint of step 2", falls(resumed))


def test_sl_basic_lowers_its_loss(recipes: Recipes):
    run = recipes.run("sl_basic", MODEL, "max_steps=4", "eval_every=2")
    recipes.note(run, "loss falls; test NLL by prompt log-probabilities", falls(run))
    assert run.values("test/nll")


def test_off_policy_distillation_trains_on_a_stream(recipes: Recipes):
    run = recipes.run(
        "distillation.off_policy_reasoning", MODEL, FRESH, "renderer_name=qwen3", "batch_size=8", "buffer_size=32",
        "max_prompts=32", "max_steps=3", "lora_rank=8",
    )  # fmt: skip
    recipes.note(run, "loss falls on a streamed data set", falls(run))


def test_prompt_distillation_asks_the_teacher_then_trains(recipes: Recipes):
    answers = recipes.workspace / "answers.jsonl"
    asked = recipes.run("prompt_distillation.create_data", f"output_file={answers}", own_log=True)
    assert answers.exists()
    recipes.note(asked, "asks for every sentence", "4 sentences, prompts of 4,500 tokens")
    data = recipes.workspace / "conversations.jsonl"
    run = recipes.run("prompt_distillation.train", MODEL, FRESH, f"file_path={data}", "batch_size=8", "max_steps=3")
    recipes.note(run, "loss falls", falls(run))


def test_a_sweep_runs_one_training_after_another(recipes: Recipes):
    results = recipes.workspace / "sweep"
    run = recipes.run(
        "chat_sl.sweep", "recipe=sft", f"base.model_name={SERVED_NAME}",
        f"base.dataset={recipes.workspace / 'conversations.jsonl'}", "base.batch_size=8", "training_budget_examples=24",
        "learning_rates=[1e-4,1e-3]", "lora_ranks=[8]", f"sweep_dir={results}", own_log=True,
    )  # fmt: skip
    best = json.loads((results / "recommendations.json").read_text())["recommendations"]["rank_8"]
    assert best["learning_rate"] == 1e-3
    recipes.note(run, "two runs; the larger rate wins", f"NLL {best['train_mean_nll']:.2f}")
