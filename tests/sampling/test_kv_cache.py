"""Pages hold what was written to them and nothing else."""

import torch

from openrl.sampling.kv_cache import KVCache, bytes_per_block

CPU = torch.device("cpu")


def small_cache() -> KVCache:
    return KVCache(
        num_layers=2, num_blocks=6, block_tokens=4, num_kv_heads=3, head_dim=2, dtype=torch.float32, device=CPU
    )


def test_what_is_written_is_read_head_by_head():
    cache = small_cache()
    k_TKH, v_TKH = torch.randn(5, 3, 2), torch.randn(5, 3, 2)
    blocks = [4, 4, 4, 4, 1]
    places = cache.places_of(torch.tensor(blocks), torch.tensor([0, 1, 2, 3, 0]))
    cache.write(1, places, k_TKH, v_TKH)
    keys, values = cache.read(1, cache.rows_of(torch.tensor([4, 1])).flatten())
    assert torch.equal(keys.view(3, 8, 2)[:, :5], k_TKH.transpose(0, 1))
    assert torch.equal(values.view(3, 8, 2)[:, :5], v_TKH.transpose(0, 1))
    assert not cache.read(0, torch.arange(18))[0].any()


def test_cleared_blocks_cannot_spoil_their_next_holder():
    cache = small_cache()
    places = cache.places_of(torch.tensor([2, 3]), torch.tensor([1, 1]))
    cache.write(0, places, torch.full((2, 3, 2), float("nan")), torch.full((2, 3, 2), float("nan")))
    cache.clear([2])
    assert cache.read(0, cache.rows_of(torch.tensor([2])).flatten())[1].eq(0.0).all()
    assert cache.read(0, cache.rows_of(torch.tensor([3])).flatten())[1].isnan().any()


def test_copies_read_everything_before_they_write():
    cache = small_cache()
    for block in range(3):
        places = cache.places_of(torch.tensor([block]), torch.tensor([0]))
        cache.write(0, places, torch.full((1, 3, 2), block + 1.0), torch.full((1, 3, 2), -block - 1.0))
    cache.copy([(0, 1), (1, 2)])
    keys, values = cache.read(0, torch.arange(9))
    assert keys[:, 0, 0].view(3, 3)[:, 0].tolist() == [1.0, 1.0, 2.0]
    assert values[:, 0, 0].view(3, 3)[:, 0].tolist() == [-1.0, -1.0, -2.0]


def test_a_block_counts_keys_and_values_of_all_layers():
    assert bytes_per_block(2, 4, 3, 2, torch.bfloat16) == 2 * 2 * 4 * 3 * 2 * 2
