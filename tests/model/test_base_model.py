"""Our forward pass against plain transformers."""

from pathlib import Path

import pytest
import torch

from openrl.errors import InvalidRequest
from openrl.model.base_model import _refuse_unsupported
from tests.model.tiny_models import FAMILIES, config_of, load_plain, load_tiny, packed

SEQUENCES = [[5, 9, 14, 200, 3], list(range(10, 160)), [7] * 33, list(range(300, 331))]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_packed_sequences_equal_plain_transformers(tiny_dirs: dict[str, Path], family: str):
    model, plain = load_tiny(tiny_dirs[family]), load_plain(tiny_dirs[family])
    with torch.no_grad():
        batch = packed(model, SEQUENCES)
        logits_TV = model.logits(model.hidden(batch))
        for segment, sequence in zip(batch.segments, SEQUENCES, strict=True):
            expected = plain(torch.tensor([sequence])).logits[0]
            got = logits_TV[segment.start : segment.start + segment.length]
            assert (got - expected).abs().max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sequence_has_the_same_bits_whatever_shares_the_batch(tiny_dirs: dict[str, Path], family: str):
    model = load_tiny(tiny_dirs[family])
    with torch.no_grad():
        together = packed(model, SEQUENCES)
        hidden_TD = model.hidden(together)
        logits_TV = model.logits(hidden_TD)
        for segment, sequence in zip(together.segments, SEQUENCES, strict=True):
            alone_TD = model.hidden(packed(model, [sequence]))
            rows = slice(segment.start, segment.start + segment.length)
            assert torch.equal(alone_TD[: segment.length], hidden_TD[rows])
            assert torch.equal(model.logits(alone_TD)[: segment.length], logits_TV[rows])


def test_linear_shapes_name_every_projection_and_the_head(tiny_dirs: dict[str, Path]):
    model = load_tiny(tiny_dirs["llama"])
    assert len(model.linear_shapes) == 3 * 7 + 1
    assert model.linear_shapes["model.layers.0.mlp.down_proj"] == (96, 64)
    assert list(model.linear_shapes)[-1] == "lm_head"
    assert model.eos_token_ids == {2}


def test_gemma_layers_know_their_windows(tiny_dirs: dict[str, Path]):
    assert load_tiny(tiny_dirs["gemma3"]).layer_windows == [20, None, 20]


def test_a_model_with_capped_logits_is_refused_by_name():
    config = config_of("gemma3")
    config.final_logit_softcapping = 30.0  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(InvalidRequest, match="final_logit_softcapping = 30"):
        _refuse_unsupported("capped", config)
