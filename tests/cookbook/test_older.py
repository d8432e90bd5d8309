"""tinker-cookbook 0.5.5, of August 2026: its main recipes."""

import pytest

from tests.cookbook.recipes import FRESH, MODEL, OLD, OLD_WITH_ITS_SDK, Recipes

SDKS = pytest.mark.parametrize(("sdk", "source"), [("0.38", OLD), ("0.25", OLD_WITH_ITS_SDK)])


@SDKS
def test_the_loops_of_0_5_5(recipes: Recipes, sdk: str, source: str):
    trained = recipes.run("sl_loop", MODEL, "batch_size=8", "save_every=2", "max_steps=4", source=source)
    nll = trained.values("train_mean_nll")
    assert nll[-1] < nll[0]
    recipes.note(trained, f"0.5.5, SDK {sdk}: loss falls", f"{nll[0]:.2f} → {nll[-1]:.2f}")
    options = ("batch_size=8", "group_size=4", "max_tokens=16", "max_steps=2")
    run = recipes.run("rl_loop", MODEL, *options, source=source)
    assert len(run.metrics) == 2
    recipes.note(run, f"0.5.5, SDK {sdk}: ends", "done")


@SDKS
def test_math_rl_of_0_5_5(recipes: Recipes, sdk: str, source: str):
    options = ("groups_per_batch=8", "group_size=4", "max_tokens=5", "max_steps=3", "eval_every=0")
    run = recipes.run("math_rl.train", MODEL, FRESH, *options, source=source)
    kl = max(abs(value) for value in run.values("optim/kl_sample_train_v2"))
    assert kl <= 1e-5
    recipes.note(run, f"0.5.5, SDK {sdk}: KL of sampler and trainer ≤ 1e-5", f"{kl:.0e}")


@SDKS
def test_chat_sl_of_0_5_5(recipes: Recipes, sdk: str, source: str):
    data = f"dataset={recipes.workspace / 'conversations.jsonl'}"
    options = ("batch_size=8", "max_steps=4", "eval_every=2", "learning_rate=0.001")
    run = recipes.run("chat_sl.train", MODEL, FRESH, data, *options, source=source)
    nll = run.values("train_mean_nll")
    assert nll[-1] < nll[0]
    recipes.note(run, f"0.5.5, SDK {sdk}: loss falls", f"{nll[0]:.2f} → {nll[-1]:.2f}")
