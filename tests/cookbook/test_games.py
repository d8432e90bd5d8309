"""Recipes that play: many turns, two players of whom one waits for the other, a second model that answers."""

from tests.cookbook.player_model import PLAYER_NAME
from tests.cookbook.recipes import FRESH, MODEL, Recipes

NO_THINKING = "renderer_name=qwen3_disable_thinking"
SMALL = ("batch_size=4", "group_size=2", "max_tokens=8", "max_steps=1", "eval_every=0")


def test_a_number_is_guessed(recipes: Recipes):
    run = recipes.run("multiplayer_rl.guess_number.train", MODEL, FRESH, NO_THINKING, *SMALL)
    [turns] = run.values("env/all/turns_per_episode")
    assert turns > 1
    recipes.note(run, "ends; turns of an episode", f"{turns:.1f}")


def test_twenty_questions_are_answered_by_a_second_model(recipes: Recipes):
    run = recipes.run("multiplayer_rl.twenty_questions.train", MODEL, FRESH, NO_THINKING, *SMALL, "num_epochs=1")
    [turns] = run.values("env/all/turns_per_episode")
    assert turns == 20
    recipes.note(run, "ends; turns of an episode", f"{turns:.1f}")


def test_players_take_turns_without_waiting_for_ever_and_can_be_measured(recipes: Recipes):
    player = f"model_name={PLAYER_NAME}"
    size = ("batch_size=16", "num_train_datapoints=64", "num_test_datapoints=4", "max_tokens=16", "max_steps=2")
    run = recipes.run("multiplayer_rl.text_arena.train", player, FRESH, NO_THINKING, *size, "eval_every=1")
    turns = run.values("env/all/turns_per_episode")
    assert min(turns) > 1
    recipes.note(run, "self-play and evaluation end; moves of a player in a game", f"{min(turns):.1f}")
    path = run.checkpoints[-1]["sampler_path"]
    for opponent in ("random", "base_model"):
        games = ("mode=eval", f"opponent={opponent}", "num_games=2", f"checkpoint_path={path}")
        played = recipes.run("multiplayer_rl.text_arena.play", player, NO_THINKING, *games, own_log=True)
        assert "Game 2" in played.output
        recipes.note(played, "two games against the opponent", "done")
