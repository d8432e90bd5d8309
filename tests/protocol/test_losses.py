"""Names and settings of losses."""

import pytest

from openrl.errors import InvalidRequest
from openrl.protocol.losses import LOSSES, resolve_loss, resolve_loss_settings


def test_unknown_losses_are_refused_with_the_known_names():
    with pytest.raises(InvalidRequest, match="unknown loss_fn 'mse'; known: cross_entropy, importance_sampling, ppo"):
        resolve_loss("mse")


def test_defaults_fill_what_is_not_given():
    assert resolve_loss_settings("ppo", {}) == {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
    assert resolve_loss_settings("cispo", {"clip_high_threshold": 5}) == {
        "clip_low_threshold": 0.0,
        "clip_high_threshold": 5.0,
    }
    assert resolve_loss_settings("importance_sampling", {}) == {}


@pytest.mark.parametrize("name", LOSSES)
def test_unknown_settings_are_refused_by_name(name: str):
    with pytest.raises(InvalidRequest, match=f"loss_fn '{name}' has no setting 'epsilon'"):
        resolve_loss_settings(name, {"epsilon": 0.1})


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("dro", {"beta": -0.1}, "beta is -0.1"),
        ("dro", {"beta": float("nan")}, "beta is nan"),
        ("ppo", {"clip_high_threshold": float("inf")}, "clip_high_threshold is inf"),
        ("ppo", {"clip_low_threshold": "0.8"}, "is '0.8'; it must be a number, not a text"),
        ("gspo", {"clip_low_threshold": 1.5}, "clip_low_threshold 1.5 is above clip_high_threshold"),
        ("stable_reinforce", {"sequence_ratio_low": 3.0}, "sequence_ratio_low 3.0 is above sequence_ratio_high"),
    ],
)
def test_settings_out_of_bounds_are_refused_with_value_and_bound(
    name: str, given: dict[str, float | str], message: str
):
    with pytest.raises(InvalidRequest, match=message):
        resolve_loss_settings(name, given)


def test_policy_losses_are_told_apart_by_their_inputs():
    assert [name for name, spec in LOSSES.items() if not spec.is_rl] == ["cross_entropy"]
    assert set(LOSSES["gspo"].inputs()) == {
        "target_tokens",
        "logprobs",
        "advantages",
        "clip_low_threshold",
        "clip_high_threshold",
        "sequence_ratio_mask",
    }
