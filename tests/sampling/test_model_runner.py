"""Slices are packed one after the other, and chosen rows find their adapter."""

import torch

from openrl.model.base_model import BaseModel
from openrl.model.lora import AdapterBank
from openrl.sampling.batcher import Slice
from openrl.sampling.kv_cache import KVCache
from openrl.sampling.model_runner import ModelRunner, RowRange, row_ranges
from openrl.sampling.sequence import Prompt, Sequence
from tests.model.tiny_models import packed
from tests.sampling.jobs import adapter_weights

TOKENS = [5, 9, 14, 200, 3, 7, 8, 30, 31, 32]


def test_ranges_follow_each_other():
    sequence = Sequence(Prompt(0, TOKENS, None, b"", 1), 0, TOKENS)
    ranges = row_ranges([Slice(sequence, 0, 3), Slice(sequence, 4, 2)], [-1, 2])
    assert ranges == [RowRange(0, 3, -1), RowRange(3, 2, 2)]
    assert ranges[1].last == RowRange(4, 1, 2)


def test_chosen_rows_get_the_logits_of_the_dense_model_under_their_adapter(llama: BaseModel):
    bank = AdapterBank(llama.linear_shapes, 2, llama.dtype, llama.device)
    bank.write(1, adapter_weights(llama, 3))
    cache = KVCache(llama.num_layers, 4, 16, llama.num_kv_heads, llama.head_dim, llama.dtype, llama.device)
    runner = ModelRunner(llama, cache, bank)
    sequences = [Sequence(Prompt(i, TOKENS, None, b"", 1), 0, TOKENS, blocks=[i]) for i in range(2)]
    slices, slots = [Slice(sequence, 0, 10) for sequence in sequences], [-1, 1]
    with torch.inference_mode():
        hidden_TD = runner.hidden(slices, slots)
        got = runner.logits(hidden_TD, [RowRange(3, 2, -1), RowRange(19, 1, 1)])
        batch = packed(llama, [TOKENS, TOKENS], bank, slots)
        expected = llama.logits(llama.hidden(batch), bank, batch.segments)
    assert torch.equal(got, expected[[3, 4, 19]])
