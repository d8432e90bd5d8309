"""tinker-cookbook 0.5.5, of August 2026: its main recipes."""

from tests.cookbook.recipes import FRESH, MODEL, ROOT, Recipes

SOURCE = str(ROOT / ".cookbook-0.5.5")


def test_the_loops_of_0_5_5(recipes: Recipes):
    trained = recipes.run("sl_loop", MODEL, "batch_size=8", "save_every=2", "max_steps=4", source=SOURCE)
    nll = trained.values("train_mean_nll")
    assert nll[-1] < nll[0]
    recipes.note(trained, "0.5.5: loss falls", f"{nll[0]:.2f} → {nll[-1]:.2f}")
    options = ("batch_size=8", "group_size=4", "max_tokens=16", "max_steps=2")
    run = recipes.run("rl_loop", MODEL, *options, source=SOURCE)
    assert len(run.metrics) == 2
    recipes.note(run, "0.5.5: ends", "done")


def test_math_rl_of_0_5_5(recipes: Recipes):
    options = ("groups_per_batch=8", "group_size=4", "max_tokens=5", "max_steps=3", "eval_every=0")
    run = recipes.run("math_rl.train", MODEL, FRESH, *options, source=SOURCE)
    kl = max(abs(value) for value in run.values("optim/kl_sample_train_v2"))
    assert kl <= 1e-5
    recipes.note(run, "0.5.5: KL of sampler and trainer ≤ 1e-5", f"{kl:.0e}")


def test_chat_sl_of_0_5_5(recipes: Recipes):
    data = f"dataset={recipes.workspace / 'conversations.jsonl'}"
    options = ("batch_size=8", "max_steps=4", "eval_every=2", "learning_rate=0.001")
    run = recipes.run("chat_sl.train", MODEL, FRESH, data, *options, source=SOURCE)
    nll = run.values("train_mean_nll")
    assert nll[-1] < nll[0]
    recipes.note(run, "0.5.5: loss falls", f"{nll[0]:.2f} → {nll[-1]:.2f}")
