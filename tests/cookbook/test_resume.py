"""An interrupted recipe, started again, goes on as if nothing had happened: every bit of it."""

from tests.contracts.saved_state import read_state, same_state
from tests.cookbook.player_model import PLAYER_NAME
from tests.cookbook.recipes import FRESH, GRADE_SCHOOL, MODEL, RESUME, Recipes, Run, interrupted

BY_CHANCE = ("time", "cached", "cumulative")


def numbers(run: Run, first_step: int) -> list[dict[str, float]]:
    """What each step from that one on measured, but for clocks, hits of the cache and counts over the whole run."""
    return [
        {
            name: value
            for name, value in step.items()
            if isinstance(value, int | float) and not any(word in name for word in BY_CHANCE)
        }
        for step in run.metrics
        if step["step"] >= first_step
    ]


def assert_equal(recipes: Recipes, whole: Run, resumed: Run, first_step: int) -> None:
    """Metrics from `first_step` on, final adapter and final optimizer are the same bits."""
    assert numbers(resumed, first_step) == numbers(whole, first_step) != []
    ends = [read_state(run.checkpoints[-1]["state_path"], recipes.server.data_dir) for run in (whole, resumed)]
    assert same_state(*ends)


def test_sl_loop_resumes_bit_for_bit(recipes: Recipes):
    options = (MODEL, "batch_size=8", "save_every=2", "max_steps=4", "learning_rate=0.001")
    whole = recipes.run("sl_loop", *options)
    nll = whole.values("train_mean_nll")
    assert nll[-1] < nll[0]
    resumed = recipes.run("sl_loop", *options, log=interrupted(whole, "000002", recipes.new_log("sl_loop")))
    assert_equal(recipes, whole, resumed, first_step=2)
    recipes.note([whole, resumed], "resumed at step 2: metrics, adapter and optimizer bit-equal", f"NLL {nll[-1]:.6f}")


def test_reinforcement_resumes_bit_for_bit(recipes: Recipes):
    """Rollouts are greedy, for samples are the one thing that differs from run to run; a KL penalty gives gradients."""
    player = f"model_name={PLAYER_NAME}"
    moved = recipes.run("sl_loop", player, "batch_size=8", "save_every=0", "max_steps=2", "learning_rate=0.01")
    options = (
        player, *GRADE_SCHOOL, "max_tokens=8", "max_steps=4", "save_every=2", "temperature=0.0",
        "loss_fn=importance_sampling", "kl_penalty_coef=10.0", "learning_rate=0.001",
        "kl_reference_config=tinker_cookbook.rl.train:KLReferenceConfig",
        f"kl_reference_config.base_model={PLAYER_NAME}",
        f"kl_reference_config.load_checkpoint_path={moved.checkpoints[-1]['sampler_path']}",
    )  # fmt: skip
    whole = recipes.run("rl_basic", *options)
    norms = whole.values("grad_norm")
    assert min(norms) > 0.1
    log = interrupted(whole, "000002", recipes.new_log("rl_basic"))
    resumed = recipes.run("rl_basic", *options, log=log, answers="resume\n")
    assert_equal(recipes, whole, resumed, first_step=2)
    recipes.note(
        [whole, resumed], "resumed at step 2: metrics, adapter and optimizer bit-equal", f"norm {norms[-1]:.6f}"
    )


def test_dpo_resumes_from_the_same_weights(recipes: Recipes):
    """The recipe takes the weights at its start for its reference, so a resumed run begins at ln 2 again."""
    options = (MODEL, "batch_size=2", "max_steps=22", "learning_rate=0.0001")
    whole = recipes.run("preference.dpo.train", FRESH, *options)
    runs = [
        recipes.run("preference.dpo.train", RESUME, *options, log=interrupted(whole, "000020", recipes.new_log("dpo")))
        for _ in range(2)
    ]
    at_20 = [next(step for step in run.metrics if step["step"] == 20) for run in (whole, runs[0])]
    assert at_20[0]["test/nll"] == at_20[1]["test/nll"]
    assert abs(at_20[1]["margin"]) <= 1e-5
    assert_equal(recipes, runs[0], runs[1], first_step=20)
    recipes.note(
        [whole, *runs],
        "resumed at step 20: test NLL bit-equal to the uninterrupted run, loss ln 2 again (the recipe's reference is "
        "the weights at its start); two resumed runs bit-equal to the end",
        f"test NLL {at_20[0]['test/nll']:.6f}",
    )


def test_rl_loop_resumes(recipes: Recipes):
    options = (MODEL, "batch_size=8", "group_size=4", "max_tokens=16", "max_steps=3", "save_every=1")
    whole = recipes.run("rl_loop", *options)
    log = interrupted(whole, "000002", recipes.new_log("rl_loop"))
    resumed = recipes.run("rl_loop", *options, log=log)
    assert [step["progress/batch"] for step in resumed.metrics] == [2]
    recipes.note([whole, resumed], "ends; goes on from step 2", "done")
