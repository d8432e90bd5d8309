"""Every way a forward_backward can be wrong, by itself."""

from pathlib import Path

import numpy as np
import pytest

from openrl.catalog import BaseModelInfo
from openrl.config import GatewayConfig
from openrl.errors import InvalidRequest
from openrl.gateway.admission import admit_forward_backward, admit_lora, admit_optim_step, check_load
from openrl.protocol.datum import (
    Datum,
    Float32Array,
    ForwardBackwardInput,
    Int64Array,
    LossInput,
    ProvenanceSpan,
    SparseCsr,
)
from openrl.protocol.wire import AdamParamsWire, AdapterManifest, LoraConfig, OptimStepRequest

MODEL = BaseModelInfo("m", Path("m"), "Llama", vocab_size=100, context_length=8)
CONFIG = GatewayConfig(max_datums=2, max_rank=16)


def many(num_datums: int, tokens: list[int], loss_fn: str, inputs: dict[str, LossInput]) -> ForwardBackwardInput:
    datum = Datum(np.array(tokens, np.int32), inputs)
    return ForwardBackwardInput("r", 1, (datum,) * num_datums, loss_fn)


def request(tokens: list[int], loss_fn: str = "cross_entropy", /, **inputs: LossInput) -> ForwardBackwardInput:
    return many(1, tokens, loss_fn, inputs)


def ids(*values: int) -> Int64Array:
    return np.array(values, np.int64)


def floats(*values: float) -> Float32Array:
    return np.array(values, np.float32)


def sparse(columns: int, value: float | int) -> SparseCsr:
    values = floats(value) if isinstance(value, float) else ids(value)
    return SparseCsr(values, np.array([0, 1, 1]), np.array([0]), (2, columns))


def rl(**changes: LossInput) -> dict[str, LossInput]:
    return {"target_tokens": ids(1, 2), "logprobs": floats(-1, -1), "advantages": floats(1, 1), **changes}


def test_tokens_of_all_datums_are_counted():
    good = many(2, [1, 2], "cross_entropy", {"target_tokens": ids(2, -1), "weights": floats(1, -1)})
    assert admit_forward_backward(good, MODEL, CONFIG) == 4


def test_dense_and_sparse_matrices_may_be_mixed():
    mixed = request([1, 2], target_tokens=np.array([[1, 2], [3, -1]]), weights=sparse(2, 0.5))
    assert admit_forward_backward(mixed, MODEL, CONFIG) == 2


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (many(0, [1], "ppo", {}), "number of datums is 0; it must be between 1 and 2"),
        (many(3, [1], "ppo", {}), "number of datums is 3"),
        (request([], target_tokens=ids(), weights=floats()), "datum 0: number of tokens is 0"),
        (request([1] * 9), "datum 0: number of tokens is 9; it must be between 1 and the context length 8"),
        (request([1, 100]), "tokens: entry 1 is 100; it must be between 0 and 99"),
        (request([1, -1]), "tokens: entry 1 is -1"),
        (request([1, 2], target_tokens=ids(1, 2)), "datum 0 lacks weights"),
        (
            request([1, 2], target_tokens=ids(1, 2), weights=floats(1, 1), mask=floats(1, 1)),
            "datum 0 has 'mask'; loss_fn 'cross_entropy' takes target_tokens, weights",
        ),
        (request([1, 2], target_tokens=ids(1, 100), weights=floats(1, 1)), "target_tokens: entry 1 is 100"),
        (request([1, 2], target_tokens=ids(1, -2), weights=floats(1, 1)), "it must be between -1 and 99"),
        (request([1, 2], target_tokens=floats(1, 2), weights=floats(1, 1)), "dtype is 'float32'; it must be int64"),
        (request([1, 2], target_tokens=ids(1, 2), weights=ids(1, 1)), "dtype is 'int64'; it must be float32"),
        (
            request([1, 2], target_tokens=ids(1, 2), weights=floats(1)),
            "weights: rows is 1; it must be the datum's number of tokens, 2",
        ),
        (request([1, 2], target_tokens=ids(1, 2, 3), weights=floats(1, 1)), "target_tokens: rows is 3"),
        (
            request([1, 2], target_tokens=ids(1, 2), weights=sparse(2, 1.0)),
            "shape is [2, 2]; it must be that of target_tokens, [2]",
        ),
        (request([1, 2], target_tokens=sparse(5000, 1), weights=sparse(5000, 1.0)), "columns is 5000; it must be 1 to"),
        (request([1, 2], target_tokens=sparse(2, 100), weights=sparse(2, 1.0)), "entry 0 is 100"),
        (
            request([1, 2], target_tokens=ids(1, 2), weights=floats(1, float("nan"))),
            "entry 1 is nan; it must be fin",
        ),
        (request([1, 2], "ppo", **rl(advantages=floats(1, float("inf")))), "advantages: entry 1 is inf"),
        (request([1, 2], "ppo", **rl(clip_low_threshold=floats(-1, 1))), "finite and at least 0.0"),
        (request([1, 2], "ppo", **rl(logprobs=np.zeros((2, 1), np.float32))), "it must be [N] with N = 2"),
        (request([1, 2], "made_up", **rl()), "unknown loss_fn 'made_up'; known: cross_entropy"),
    ],
)
def test_wrong_data_is_refused_with_value_and_bound(bad: ForwardBackwardInput, message: str):
    with pytest.raises(InvalidRequest) as caught:
        admit_forward_backward(bad, MODEL, CONFIG)
    assert message in str(caught.value)


def test_unknown_settings_and_values_out_of_range_are_refused():
    datum = request([1, 2], "ppo", **rl()).data[0]
    for config in ({"epsilon": 0.2}, {"clip_low_threshold": -1.0}, {"clip_high_threshold": "high"}):
        with pytest.raises(InvalidRequest, match=next(iter(config))):
            admit_forward_backward(ForwardBackwardInput("r", 1, (datum,), "ppo", dict(config)), MODEL, CONFIG)


def test_provenance_must_cover_every_token_on_both_sides():
    span = ProvenanceSpan("s", 0, 2, True)
    tokens, inputs = np.array([1, 2], np.int32), rl()
    whole = ForwardBackwardInput("r", 1, (Datum(tokens, inputs, (span,), (span,)),), "stable_reinforce")
    assert admit_forward_backward(whole, MODEL, CONFIG) == 2
    half = ForwardBackwardInput("r", 1, (Datum(tokens, inputs, (span,), ()),), "stable_reinforce")
    with pytest.raises(InvalidRequest, match="tokens in loss_fn_input_spans is 0; it must be all 2"):
        admit_forward_backward(half, MODEL, CONFIG)


def test_adam_settings_have_bounds():
    step = OptimStepRequest(model_id="r", seq_id=1, adam_params=AdamParamsWire(beta2=1.0))
    with pytest.raises(InvalidRequest, match=r"beta2 is 1\.0; it must be at least 0 and below 1"):
        admit_optim_step(step, "adamw")
    fine = OptimStepRequest(model_id="r", seq_id=1, adam_params=AdamParamsWire(grad_clip_norm=-1.0))
    assert admit_optim_step(fine, "adamw").grad_clip_norm == -1.0


def test_an_adapter_must_have_a_rank_and_something_to_train():
    nothing = LoraConfig(rank=8, train_attn=False, train_mlp=False, train_unembed=False)
    for lora, message in (
        (None, "lora_config is missing"),
        (LoraConfig(rank=17), "rank is 17; it must be between 1 and 16"),
        (LoraConfig(rank=0), "rank is 0"),
        (LoraConfig(rank=8, seed=2**63), "must be below"),
        (nothing, "all false"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            admit_lora(lora, CONFIG)


def test_a_checkpoint_without_optimizer_state_cannot_give_it():
    manifest = AdapterManifest(
        format=1,
        base_model="m",
        rank=8,
        seed=0,
        train_attn=True,
        train_mlp=True,
        train_unembed=True,
        has_optimizer=False,
    )
    check_load(manifest, "p", with_optimizer=False, base_model="m")
    with pytest.raises(InvalidRequest, match="no optimizer state"):
        check_load(manifest, "p", with_optimizer=True, base_model=None)
    with pytest.raises(InvalidRequest, match="base_model is 'n'; it must be 'm', on which"):
        check_load(manifest, "p", with_optimizer=False, base_model="n")
