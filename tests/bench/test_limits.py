"""The formulas give the table of limits that the benchmarks' requirements were set from."""

from pathlib import Path

import pytest
import torch
from bench.limits import Limits, limits_of
from bench.models import SHAPES, config_of
from transformers import AutoModelForCausalLM

from openrl.model.base_model import ATTENTION_NAME, BaseModel, ModelSource, register_attention


def limits(name: str) -> Limits:
    """Of a model without memory."""
    register_attention()
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config_of(name, tiny=False), attn_implementation=ATTENTION_NAME)
    source = ModelSource(name, Path(name), torch.device("meta"), torch.bfloat16)
    return limits_of(BaseModel(source, plain, None, fuses_linears=False), 32)


@pytest.mark.parametrize(
    ("name", "train", "decode_64", "decode_256", "optim_ms"),
    [
        ("qwen3-0.6b", 239_846, 38_787, 47_336, 0.20),
        ("qwen3-4b", 42_905, 14_911, 28_058, 0.66),
        ("gemma-3-1b", 182_368, 66_854, 139_912, 0.26),
    ],
)
def test_limits_are_those_of_the_table(name: str, train: float, decode_64: float, decode_256: float, optim_ms: float):
    assert name in SHAPES
    found = limits(name)
    assert found.training_rate(2048) == pytest.approx(train, rel=0.02)
    assert found.decode_rate(64, 512) == pytest.approx(decode_64, rel=0.01)
    assert found.decode_rate(256, 512) == pytest.approx(decode_256, rel=0.01)
    assert 1e3 * found.optim_s() == pytest.approx(optim_ms, abs=0.01)


def test_adapters_cost_what_reading_them_takes():
    found = limits("qwen3-4b")
    step_s = 64 / found.decode_rate(64, 512)
    assert 64 / found.decode_rate(64, 512, num_adapters=8) - step_s == pytest.approx(0.35e-3, rel=0.02)
