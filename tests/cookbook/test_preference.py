"""Preference recipes: DPO begins at ln 2, the pipeline of three stages ends, a policy learns to be short."""

from tests.cookbook.chat_model import SERVED_NAME
from tests.cookbook.recipes import FRESH, MODEL, Recipes, Run


def test_dpo_begins_at_ln_2(recipes: Recipes):
    run = recipes.run("preference.dpo.train", MODEL, FRESH, "batch_size=4", "max_steps=6", "learning_rate=0.0001")
    losses = run.values("dpo_loss")
    assert round(losses[0], 6) == 0.693147
    assert abs(run.values("margin")[0]) <= 1e-5
    assert losses[-1] < losses[0]
    recipes.note(run, "step-0 loss 0.693147, margin 0 ± 1e-5, then falls", f"{losses[0]:.6f} → {losses[-1]:.4f}")


def test_a_policy_learns_to_be_shorter(recipes: Recipes):
    size = ("batch_size=8", "group_size=16", "learning_rate=0.0005", "max_steps=12", "eval_every=0")
    run = recipes.run("preference.shorter.train", MODEL, FRESH, "renderer_name=qwen3_disable_thinking", *size)
    lengths = run.values("env/all/ac_tokens_per_turn")
    first, last = sum(lengths[:3]) / 3, sum(lengths[-3:]) / 3
    assert last < 0.75 * first
    assert max(run.values("kl_pre_post_v2")) > 0
    recipes.note(run, "tokens of three steps, last against first", f"{first:.1f} → {last:.1f}")


def test_the_pipeline_trains_a_reward_model_and_a_policy_on_it(recipes: Recipes):
    run = recipes.run(
        "preference.rlhf.rlhf_pipeline", f"base_model={SERVED_NAME}", "short_name=tiny", "lora_rank=8",
        "batch_size=4", "max_steps=2", "rl_max_tokens=8", "rl_group_size=2", "eval_every=1", "save_every=1",
        own_log=True,
    )  # fmt: skip
    root = recipes.workspace / "runs" / "rlhf-tiny"
    stages = [Run(run.recipe, run.options, root / stage, "", 0.0) for stage in ("sft", "rm", "rl")]
    assert all(stage.checkpoints[-1]["name"] == "final" for stage in stages)
    kl = max(abs(value) for value in stages[-1].values("optim/kl_sample_train_v2"))
    assert kl <= 1e-5
    recipes.note(run, "three stages end; KL of sampler and trainer ≤ 1e-5", f"{kl:.0e}")
