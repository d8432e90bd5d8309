"""Tables in bf16 give the bits of tables in fp32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from openrl.model import base_model
from openrl.model.base_model import BaseModel
from openrl.model.head import target_logprobs
from openrl.model.vocab_table import CHECKED_ROWS, WidenedEmbedding, narrow_tables, narrowed
from tests.model.tiny_models import FAMILIES, VOCAB, config_of, load_tiny, packed, save_tiny_model

SEQUENCES = [[5, 9, 14, 200, 3, 0], list(range(10, 160))]


@pytest.fixture
def bf16_dir(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a tiny model whose weights all fit bf16, as those of a checkpoint in bf16 do."""

    def make(family: str) -> Path:
        directory = save_tiny_model(family, tmp_path / family)
        model: Any = AutoModelForCausalLM.from_pretrained(directory)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.bfloat16())
        model.save_pretrained(directory)
        return directory

    return make


def loaded_wide(directory: Path, monkeypatch: pytest.MonkeyPatch) -> BaseModel:
    """The twin whose tables stay in fp32."""
    with monkeypatch.context() as patch:
        patch.setattr(base_model, "narrow_tables", lambda causal_lm: None)  # pyright: ignore[reportUnknownLambdaType]
        return load_tiny(directory)


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_logits_and_gradients_keep_their_bits(
    bf16_dir: Callable[[str], Path], family: str, monkeypatch: pytest.MonkeyPatch
):
    directory = bf16_dir(family)
    narrow, wide = load_tiny(directory), loaded_wide(directory, monkeypatch)
    assert (narrow.head_weight.dtype, wide.head_weight.dtype) == (torch.bfloat16, torch.float32)
    with torch.no_grad():
        hidden_TD = narrow.hidden(packed(narrow, SEQUENCES))
        assert torch.equal(hidden_TD, wide.hidden(packed(wide, SEQUENCES)))
        assert torch.equal(narrow.logits(hidden_TD), wide.logits(hidden_TD))
    targets_TK = torch.randint(0, VOCAB, (hidden_TD.shape[0], 2))
    grads: list[torch.Tensor] = []
    for model in (narrow, wide):
        leaf_TD = hidden_TD.clone().requires_grad_()
        target_logprobs(model, leaf_TD, targets_TK).sum().backward()
        assert leaf_TD.grad is not None
        grads.append(leaf_TD.grad)
    assert torch.equal(*grads)


def test_tied_tables_stay_one():
    model: Any = AutoModelForCausalLM.from_config(config_of("gemma3"))
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight.bfloat16())
    narrow_tables(model)
    assert isinstance(model.get_input_embeddings(), WidenedEmbedding)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_a_table_with_one_value_that_does_not_fit_stays_as_it_is():
    weight_VD = torch.ones(CHECKED_ROWS + 3, 2)
    weight_VD[-1, -1] = 1.0 + 2.0**-20
    assert narrowed(weight_VD) is None
    model: Any = AutoModelForCausalLM.from_config(config_of("llama"))
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight.bfloat16())
    narrow_tables(model)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert isinstance(model.get_input_embeddings(), nn.Embedding)
