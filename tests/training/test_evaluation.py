"""Losses, outputs and metrics of one datum against the token-by-token reference."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from openrl.errors import InvalidRequest, RequestFailed
from openrl.protocol.datum import Datum, LossInput, ProvenanceSpan
from openrl.protocol.losses import resolve_loss, resolve_loss_settings
from openrl.training.evaluation import Evaluation, LossCall, evaluate, summarise
from openrl.training.loss_inputs import read_targets
from tests.training.reference_losses import Tokens, reference
from tests.training.workbench import sft_datum

LENGTH = 24
PROMPT = 4
POLICY_LOSSES = ("importance_sampling", "ppo", "cispo", "dro", "gspo", "stable_reinforce")
SPANS = (
    ProvenanceSpan("a", 0, PROMPT, is_sampled=False),
    ProvenanceSpan("a", 0, 7, is_sampled=True),
    ProvenanceSpan("b", 4, 3, is_sampled=False),
    ProvenanceSpan("b", 0, 6, is_sampled=True),
    ProvenanceSpan("a", 7, 4, is_sampled=True),
)


def call_of(name: str, **settings: float | str) -> LossCall:
    return LossCall(resolve_loss(name), resolve_loss_settings(name, settings))


def logprobs_of(seed: int, length: int = LENGTH) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(-1.5, 0.4, length).astype(np.float32)


def policy_datum(seed: int, drift: float = 0.5) -> Datum:
    rng = np.random.default_rng(seed)
    sampled = np.arange(LENGTH) >= PROMPT
    near = logprobs_of(seed) + rng.normal(0, drift, LENGTH)
    inputs: dict[str, LossInput] = {
        "target_tokens": rng.integers(3, 500, LENGTH).astype(np.int64),
        "logprobs": (sampled * near).astype(np.float32),
        "advantages": (sampled * rng.normal(0, 1, LENGTH)).astype(np.float32),
    }
    return Datum(np.arange(LENGTH, dtype=np.int32), inputs)


def evaluated(call: LossCall, datum: Datum, p: NDArray[np.float32]) -> Evaluation:
    targets = read_targets(datum)
    logprobs_MK = torch.from_numpy(p.reshape(targets.shape[0], -1)[targets.rows_M])
    return evaluate(call, datum, targets, logprobs_MK, with_gradient=True)


def tokens_of(datum: Datum, call: LossCall, p: NDArray[np.float32], sequence: list[str | None]) -> Tokens:
    def column(name: str) -> list[float]:
        values = datum.loss_inputs.get(name)
        return [float(value) for value in values] if isinstance(values, np.ndarray) else []

    low = column("clip_low_threshold") or [call.settings.get("clip_low_threshold", 0.0)] * LENGTH
    high = column("clip_high_threshold") or [call.settings.get("clip_high_threshold", 0.0)] * LENGTH
    return Tokens([float(x) for x in p], column("logprobs"), column("advantages"), low, high, sequence)


def check(call: LossCall, datum: Datum, sequence: list[str | None], seed: int) -> Evaluation:
    p = logprobs_of(seed)
    got = evaluated(call, datum, p)
    loss, slopes = reference(call.spec.name, tokens_of(datum, call, p, sequence), call.settings)
    assert got.loss == pytest.approx(loss, rel=1e-10)
    assert got.gradient_MK is not None
    assert np.allclose(got.gradient_MK[:, 0].numpy(), slopes, rtol=1e-6, atol=1e-7)
    assert np.array_equal(got.outputs["logprobs"], p)
    return got


WHOLE: list[str | None] = [None] * PROMPT + ["s"] * (LENGTH - PROMPT)


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_policy_losses_equal_the_reference_with_default_settings(name: str):
    for seed in range(4):
        check(call_of(name), policy_datum(seed), WHOLE, seed)


@pytest.mark.parametrize("name", ["ppo", "cispo", "gspo"])
def test_given_thresholds_are_used(name: str):
    given = call_of(name, clip_low_threshold=0.95, clip_high_threshold=1.01)
    got = check(given, policy_datum(1), WHOLE, 1)
    assert got.loss != evaluated(call_of(name), policy_datum(1), logprobs_of(1)).loss


@pytest.mark.parametrize("name", ["ppo", "cispo", "gspo"])
def test_thresholds_of_the_datum_win_over_the_settings(name: str):
    rng = np.random.default_rng(0)
    datum = policy_datum(2)
    inputs = {
        **datum.loss_inputs,
        "clip_low_threshold": rng.uniform(0.5, 0.99, LENGTH).astype(np.float32),
        "clip_high_threshold": rng.uniform(1.01, 1.5, LENGTH).astype(np.float32),
    }
    check(call_of(name, clip_low_threshold=0.1, clip_high_threshold=9.0), replace(datum, loss_inputs=inputs), WHOLE, 2)


@pytest.mark.parametrize("settings", [{"beta": 0.0}, {"beta": 2.5}])
def test_dro_takes_beta(settings: dict[str, float]):
    check(call_of("dro", **settings), policy_datum(3), WHOLE, 3)


def test_the_gspo_ratio_is_over_the_masked_tokens():
    mask = (np.arange(LENGTH) % 3 == 0).astype(np.float32)
    datum = policy_datum(4, drift=0.1)
    masked = replace(datum, loss_inputs={**datum.loss_inputs, "sequence_ratio_mask": mask})
    sequence: list[str | None] = ["s" if chosen else None for chosen in mask]
    got = check(call_of("gspo"), masked, sequence, 4)
    assert len(set(got.outputs["ratio"].tolist())) == 1
    assert got.loss != evaluated(call_of("gspo"), datum, logprobs_of(4)).loss


def test_stable_reinforce_finds_sequences_by_their_spans():
    datum = replace(policy_datum(5), loss_input_spans=SPANS)
    sequence: list[str | None] = [None] * PROMPT + ["a"] * 7 + [None] * 3 + ["b"] * 6 + ["a"] * 4
    bounds = {"sequence_ratio_low": 0.9, "sequence_ratio_high": 1.12, "ratio_cap": 1.3, "kl_coeff": 0.2}
    for seed in range(6):
        call = call_of("stable_reinforce", **bounds)
        check(call, replace(policy_datum(seed, drift=0.3), loss_input_spans=SPANS), sequence, seed)
    assert evaluated(call_of("stable_reinforce"), datum, logprobs_of(5)).loss != 0.0


def test_stable_reinforce_stays_bounded_far_from_the_sampler():
    datum = policy_datum(6, drift=0.0)
    far = replace(datum, loss_inputs={**datum.loss_inputs, "logprobs": logprobs_of(6) - np.float32(8.0)})
    got = evaluated(call_of("stable_reinforce"), far, logprobs_of(6))
    plain = evaluated(call_of("importance_sampling"), far, logprobs_of(6))
    assert got.loss == 0.0
    assert got.gradient_MK is not None
    assert not bool(got.gradient_MK.any())
    assert abs(plain.loss) > 1000


@pytest.mark.parametrize("width", [None, 1, 3])
def test_cross_entropy_equals_the_reference(width: int | None):
    datum = sft_datum(1, 10, width)
    weights = datum.loss_inputs["weights"]
    assert isinstance(weights, np.ndarray)
    p = np.random.default_rng(2).normal(-2, 1, weights.shape).astype(np.float32)
    got = evaluated(call_of("cross_entropy"), datum, p)
    assert got.loss == pytest.approx(-float((weights.astype(np.float64) * p.astype(np.float64)).sum()), rel=1e-12)
    assert np.array_equal(got.outputs["logprobs"], p)
    assert got.gradient_MK is not None
    assert np.array_equal(got.gradient_MK.numpy(), -weights.reshape(10, -1))


def test_metrics_of_chunks_merge_to_those_of_the_whole():
    call = call_of("ppo")
    all_of_them = [evaluated(call, policy_datum(seed), logprobs_of(seed)) for seed in range(6)]
    whole, left, right = (summarise(call, part) for part in (all_of_them, all_of_them[:2], all_of_them[2:]))
    for name in ("ratio:mean", "kl:mean", "clip_fraction:mean"):
        assert whole[name] == pytest.approx((2 * left[name] + 4 * right[name]) / 6, rel=1e-12)
    assert whole["ratio:max"] == max(left["ratio:max"], right["ratio:max"])
    assert 0 < whole["clip_fraction:mean"] < 1


def test_a_datum_without_advantages_counts_as_on_policy():
    datum = policy_datum(1)
    still = replace(datum, loss_inputs={**datum.loss_inputs, "advantages": np.zeros(LENGTH, np.float32)})
    metrics = summarise(call_of("gspo"), [evaluated(call_of("gspo"), still, logprobs_of(1))])
    assert metrics["loss:sum"] == 0.0
    assert (metrics["ratio:mean"], metrics["kl:mean"], metrics["clip_fraction:mean"]) == (1.0, 0.0, 0.0)


def test_an_overflowing_ratio_fails_the_datum_instead_of_being_hidden():
    datum = policy_datum(1)
    wild = replace(datum, loss_inputs={**datum.loss_inputs, "logprobs": np.full(LENGTH, -1e4, np.float32)})
    with pytest.raises(RequestFailed, match="the loss is not finite") as caught:
        evaluated(call_of("importance_sampling"), wild, logprobs_of(1))
    assert caught.value.category == "user"


def test_a_log_probability_that_is_not_finite_is_never_reported():
    p = logprobs_of(1)
    p[3] = np.nan
    with pytest.raises(RequestFailed, match="log-probability is not finite") as caught:
        evaluated(call_of("ppo"), policy_datum(1), p)
    assert caught.value.category == "server"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"advantages": np.zeros(3, np.float32)}, r"advantages has shape \(3,\); it must be \(24,\)"),
        ({"sequence_ratio_mask": np.zeros(LENGTH, np.float32)}, "marks no token"),
        ({"clip_low_threshold": np.full(LENGTH, 7.0, np.float32)}, "clip_low_threshold is above"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(changes: dict[str, NDArray[np.float32]], message: str):
    datum = policy_datum(1)
    with pytest.raises(InvalidRequest, match=message):
        evaluated(call_of("gspo"), replace(datum, loss_inputs={**datum.loss_inputs, **changes}), logprobs_of(1))


def test_spans_that_do_not_cover_the_datum_are_refused():
    datum = replace(policy_datum(1), loss_input_spans=SPANS[:2])
    with pytest.raises(InvalidRequest, match="cover 11 of 24 tokens"):
        evaluated(call_of("stable_reinforce"), datum, logprobs_of(1))
