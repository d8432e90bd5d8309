import numpy as np
import pytest
import torch

from openrl.errors import InvalidRequest
from openrl.model.gguf_weights import GEMMA_NAMES, LLAMA_NAMES, hugging_face_name, to_bfloat16


def test_bfloat16_is_rounded_as_torch_rounds_it():
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    values = np.concatenate([values, values * 1e-30, [0.0, -0.0, 1.00390625, 1.01171875, 3.3e38]]).astype(np.float32)
    theirs = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    np.testing.assert_array_equal(to_bfloat16(values), theirs)


def test_names_follow_the_architecture():
    assert hugging_face_name("token_embd.weight", LLAMA_NAMES) == "model.embed_tokens.weight"
    assert hugging_face_name("blk.3.ffn_norm.weight", LLAMA_NAMES) == "model.layers.3.post_attention_layernorm.weight"
    assert hugging_face_name("blk.3.ffn_norm.weight", GEMMA_NAMES) == "model.layers.3.pre_feedforward_layernorm.weight"


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.x.attn_q.weight", "rope_freqs.weight"])
def test_a_tensor_without_counterpart_is_refused_by_name(name: str):
    with pytest.raises(InvalidRequest, match=name):
        hugging_face_name(name, LLAMA_NAMES)
