"""Automatic sizes become numbers."""

import pytest

from openrl.config import SamplingConfig
from openrl.errors import InvalidRequest
from openrl.model.base_model import BaseModel
from openrl.sampling.sizes import resolve_sizes


def test_automatic_values_are_those_of_the_device(llama: BaseModel):
    sizes = resolve_sizes(llama, SamplingConfig())
    assert (sizes.max_sequences, sizes.prefill_tokens, sizes.block_tokens) == (32, 512, 16)
    assert sizes.num_blocks == 2**29 // (2 * 3 * 16 * 2 * 16 * 4)
    assert sizes.max_idle_blocks == sizes.num_blocks // 4


def test_a_cache_without_room_for_a_block_is_refused_with_numbers(llama: BaseModel):
    with pytest.raises(InvalidRequest, match=r"cache_bytes is 100; one block of the KV cache needs 12288"):
        resolve_sizes(llama, SamplingConfig(cache_bytes=100))
