"""Weights read tensor by tensor are those that transformers reads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from openrl.model.weight_files import INDEX_FILE, load_causal_lm, weight_files
from tests.model.tiny_models import FAMILIES, save_tiny_model

CPU = torch.device("cpu")


def loaded(path: Path) -> Any:
    return load_causal_lm(path, AutoConfig.from_pretrained(path), torch.float32, "eager", CPU)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shard_size", ["1GB", "60KB"])
def test_one_file_and_many_give_the_model_that_transformers_gives(tmp_path: Path, family: str, shard_size: str):
    path = save_tiny_model(family, tmp_path / "whole")
    plain: Any = AutoModelForCausalLM.from_pretrained(path)
    plain.save_pretrained(tmp_path / "cut", max_shard_size=shard_size)
    assert (tmp_path / "cut" / INDEX_FILE).exists() == (shard_size == "60KB")
    assert bool(weight_files(tmp_path / "cut"))
    got = loaded(tmp_path / "cut")
    assert type(got) is type(plain)
    expected: dict[str, torch.Tensor] = plain.state_dict()
    assert got.state_dict().keys() == expected.keys()
    for name, tensor in got.state_dict().items():
        assert torch.equal(tensor, expected[name])
    for name, buffer in got.named_buffers():
        assert torch.equal(buffer, plain.get_buffer(name))


def test_the_generation_config_comes_along(tmp_path: Path):
    path = save_tiny_model("llama", tmp_path)
    GenerationConfig(eos_token_id=[2, 9]).save_pretrained(path)
    assert loaded(path).generation_config.eos_token_id == [2, 9]


def test_another_format_is_left_to_transformers(tmp_path: Path):
    assert weight_files(tmp_path) == []
