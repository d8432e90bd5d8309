"""Contract 10: every loss and its gradient against float64 references; what is not a loss is refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
import torch
from tinker import types

from tests.contracts.conftest import http_client
from tests.contracts.loops import batch, datum, new_run, numbers, raw_datum, train
from tests.contracts.reference_model import ReferenceModel
from tests.contracts.saved_state import download, gradient_of
from tests.contracts.test_gradients import assert_near
from tests.live_server import LiveServer
from tests.training.reference_losses import Tokens, reference

TOKENS = [9, 30, 200, 41, 77, 350, 3, 18]
TARGETS = [30, 200, 41, 77, 350, 3, 18, 500]
ADVANTAGES = [0.7, -1.3, 0.4, 2.0, -0.2, -0.9, 1.1, 0.3]
LOW = [0.9, 0.5, 0.99, 0.7, 0.95, 0.8, 0.6, 0.9]
HIGH = [1.1, 1.5, 1.01, 1.3, 1.05, 1.2, 1.4, 1.1]


@dataclass(frozen=True, slots=True)
class Subject:
    """A run off its starting point, and the same adapter in plain PEFT."""

    run: tinker.TrainingClient
    twin: ReferenceModel


@pytest.fixture(scope="module")
def subject(
    server: LiveServer,
    alice: tinker.ServiceClient,
    tiny_model_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Subject:
    run = new_run(alice)
    train(run, 2)
    path = run.save_state("subject").result().path
    with http_client(server.url, server.key) as http:
        adapter = download(http, path, tmp_path_factory.mktemp("adapter"))
    return Subject(run, ReferenceModel(tiny_model_dir, adapter))


def csr(values: torch.Tensor, pad_value: int = 0) -> types.TensorData:
    return types.TensorData.from_torch_sparse(values, pad_value=pad_value)


def targets_of(layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Target ids and weights, [N] or [N, K]; -1: no target there."""
    if layout == "vector":
        return torch.tensor(TARGETS), torch.tensor([0.0, 1.0, 0.5, -1.0, 2.0, 0.25, 0.0, 1.0])
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(0, 512, (len(TOKENS), 3), generator=generator)
    weights = torch.randn(len(TOKENS), 3, generator=generator)
    if layout == "sparse":
        listed = torch.rand(len(TOKENS), 3, generator=generator) < 0.4
        ids, weights = torch.where(listed, ids, -1), torch.where(listed, weights, 0.0)
    return ids, weights


# 10
@pytest.mark.parametrize("layout", ["vector", "matrix", "sparse"])
def test_cross_entropy_equals_float64(server: LiveServer, subject: Subject, layout: str):
    ids, weights = targets_of(layout)
    inputs: dict[str, Any] = {"target_tokens": ids, "weights": weights}
    if layout == "sparse":
        inputs = {"target_tokens": csr(ids, pad_value=-1), "weights": csr(weights)}
    result = subject.run.forward_backward([raw_datum(TOKENS, **inputs)], "cross_entropy").result()
    subject.twin.model.zero_grad()
    logprobs_NV = subject.twin.logprobs(TOKENS)
    chosen = logprobs_NV.gather(1, ids.clamp(min=0).reshape(len(TOKENS), -1)).reshape(ids.shape)
    loss = -(weights.double() * chosen)[ids >= 0].sum()
    loss.backward()
    assert result.metrics["loss:sum"] == pytest.approx(float(loss.detach()), rel=1e-5)
    got = np.asarray(result.loss_fn_outputs[0]["logprobs"].data).reshape(ids.shape)
    expected = torch.where(ids >= 0, chosen.detach(), 0.0).numpy()
    assert np.abs(got - expected).max() < 1e-5
    assert_near(gradient_of(subject.run, server.data_dir), subject.twin.gradients(), 1e-4)


CASES: list[tuple[str, dict[str, float], bool]] = [
    ("importance_sampling", {}, False),
    ("ppo", {}, False),
    ("ppo", {"clip_low_threshold": 0.95, "clip_high_threshold": 1.05}, False),
    ("ppo", {}, True),
    ("cispo", {}, False),
    ("cispo", {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}, False),
    ("cispo", {}, True),
    ("dro", {}, False),
    ("dro", {"beta": 0.4}, False),
    ("gspo", {}, False),
    ("gspo", {"clip_low_threshold": 0.99, "clip_high_threshold": 1.5}, False),
    ("gspo", {}, True),
    ("stable_reinforce", {}, False),
    ("stable_reinforce", {"kl_coeff": 0.3, "ratio_cap": 1.1, "sequence_ratio_low": 0.1}, False),
]
DEFAULTS: dict[str, dict[str, float]] = {
    "ppo": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
    "cispo": {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0},
    "dro": {"beta": 0.05},
    "gspo": {"clip_low_threshold": 1 - 3e-4, "clip_high_threshold": 1 + 4e-4},
    "stable_reinforce": {
        "kl_coeff": 0.01,
        "ratio_cap": 2.0,
        "sequence_ratio_low": 0.5,
        "sequence_ratio_high": 2.0,
    },
}


# 10
@pytest.mark.parametrize(("loss_fn", "config", "per_token"), CASES)
def test_policy_losses_equal_float64(
    server: LiveServer, subject: Subject, loss_fn: Any, config: dict[str, float], per_token: bool
):
    current = logprobs_of(subject.run)
    noise = np.random.default_rng(5).normal(0.0, 0.15, len(TOKENS))
    sampling = (np.array(current) + noise).astype(np.float32)
    inputs: dict[str, Any] = {"target_tokens": TARGETS, "logprobs": sampling.tolist(), "advantages": ADVANTAGES}
    if per_token:
        inputs |= {"clip_low_threshold": LOW, "clip_high_threshold": HIGH}
    result = subject.run.forward_backward([raw_datum(TOKENS, **inputs)], loss_fn, config).result()
    gradient = gradient_of(subject.run, server.data_dir)
    settings = DEFAULTS.get(loss_fn, {}) | config
    loss, slopes = reference(loss_fn, tokens_of(current, sampling.tolist(), settings, per_token), settings)
    assert result.metrics["loss:sum"] == pytest.approx(loss, rel=1e-6, abs=1e-6)
    # d loss / d logprob of the reference, pulled back through the model by cross-entropy.
    weights = [-slope for slope in slopes]
    assert any(weights)
    pulled = raw_datum(TOKENS, target_tokens=TARGETS, weights=weights)
    assert numbers(subject.run.forward_backward([pulled], "cross_entropy").result()).logprobs == [current]
    assert_near(gradient, gradient_of(subject.run, server.data_dir), 1e-6)


def logprobs_of(run: tinker.TrainingClient) -> list[float]:
    plain = raw_datum(TOKENS, target_tokens=TARGETS, weights=[1.0] * len(TOKENS))
    return numbers(run.forward([plain], "cross_entropy").result()).logprobs[0]


def tokens_of(current: list[float], sampling: list[float], settings: Mapping[str, float], per_token: bool) -> Tokens:
    num_tokens = len(TOKENS)
    low = [settings.get("clip_low_threshold", 0.0)] * num_tokens
    high = [settings.get("clip_high_threshold", 0.0)] * num_tokens
    if per_token:
        low, high = as_float32(LOW), as_float32(HIGH)
    return Tokens(current, sampling, as_float32(ADVANTAGES), low, high, ["s"] * num_tokens)


def as_float32(values: list[float]) -> list[float]:
    """As they travel."""
    return np.array(values, np.float32).tolist()


# 10
def test_what_is_not_a_loss_or_a_setting_is_refused(subject: Subject):
    policy = raw_datum([4, 5], target_tokens=[5, 6], logprobs=[-1.0, -1.0], advantages=[1.0, 1.0])
    refused: list[tuple[types.Datum, Any, dict[str, float | str], str]] = [
        (datum([4, 5, 6]), "mean_squared_error", {}, "unknown loss_fn 'mean_squared_error'"),
        (datum([4, 5, 6]), "cross_entropy", {"beta": 0.1}, "no setting 'beta'"),
        (policy, "ppo", {"clip_range": 0.2}, "no setting 'clip_range'"),
        (policy, "ppo", {"clip_low_threshold": 1.5}, "above"),
        (policy, "dro", {"beta": -1.0}, "beta is -1"),
        (policy, "dro", {"beta": "much"}, "must be a number"),
    ]
    for each, loss_fn, config, message in refused:
        with pytest.raises(tinker.BadRequestError, match=message):
            subject.run.forward_backward([each], loss_fn, config).result()


# 8, 10: losses of a batch are sums over its datums.
def test_a_batch_equals_float64(server: LiveServer, subject: Subject):
    data = batch(5)
    result = subject.run.forward_backward(data, "cross_entropy").result()
    subject.twin.model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for each in data:
        tokens, targets = each.model_input.to_ints(), np.asarray(each.loss_fn_inputs["target_tokens"].data)
        total = total - subject.twin.logprobs(tokens).gather(1, torch.from_numpy(targets)[:, None]).sum()
    total.backward()
    assert result.metrics["loss:sum"] == pytest.approx(float(total.detach()), rel=1e-6)
    assert_near(gradient_of(subject.run, server.data_dir), subject.twin.gradients(), 1e-4)
