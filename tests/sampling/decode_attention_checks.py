"""Decode attention against plain attention in fp64; run by test_decode_attention.py, interpreted or compiled."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import triton
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openrl.sampling.cache_kernels import write_rows
from openrl.sampling.decode_attention import DecodeAttention, DecodeTiles, SliceAttention, tiles_of
from openrl.sampling.kv_cache import KVCache

IS_COMPILED = torch.cuda.is_available()
DEVICE = torch.device("cuda" if IS_COMPILED else "cpu")
DTYPES = [torch.float32, torch.bfloat16] if IS_COMPILED else [torch.float32]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
LAYERS, LAYER = 2, 1
SCALE = 0.3

if not IS_COMPILED:
    from triton.runtime import interpreter

    patch_lang_tensor = interpreter._patch_lang_tensor  # pyright: ignore[reportAttributeAccessIssue]

    def index_of(scalar: Any) -> int:
        return int(np.asarray(scalar.handle.data).item())

    def patch_with_index(tensor: type, scope: interpreter._LangPatchScope) -> None:
        """Triton 3.6 calls int() on an array of one element for a loop's bounds, which numpy 2.4 refuses."""
        patch_lang_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", index_of)

    interpreter._patch_lang_tensor = patch_with_index


@dataclass(frozen=True)
class Case:
    """Sequences in a cache that is NaN wherever none of their tokens are; the last token is not in it yet."""

    cache: KVCache
    tables_BP: Tensor
    lengths: list[int]
    num_heads: int
    k: list[Tensor]  # [C, K, H] of each sequence
    v: list[Tensor]
    q_BNH: Tensor

    def new(self, x: list[Tensor]) -> Tensor:
        """The last token's of each; NaN for padding."""
        blank = torch.full(x[0].shape[1:], float("nan"), dtype=x[0].dtype, device=DEVICE)
        return torch.stack([each[-1] if each.shape[0] else blank for each in x])

    def attention(self, tiles: DecodeTiles | None = None, extra_splits: int = 1) -> DecodeAttention:
        num_splits = DecodeAttention.splits_for(self.cache, max(self.lengths), tiles) * extra_splits
        lengths_B = torch.tensor(self.lengths, dtype=torch.int32, device=DEVICE)
        return DecodeAttention(self.cache, self.tables_BP, lengths_B, num_splits, tiles=tiles)

    def attend(self, window: int | None, tiles: DecodeTiles | None = None, extra_splits: int = 1) -> Tensor:
        attention = self.attention(tiles, extra_splits)
        return attention.attend(LAYER, self.q_BNH, self.new(self.k), self.new(self.v), SCALE, window)

    def twin(self, index: int, window: int | None) -> Tensor:
        """Plain attention of one sequence's last token, fp64."""
        if not self.lengths[index]:
            return torch.zeros(self.q_BNH.shape[1:], dtype=torch.float64, device=DEVICE)
        k_CKH, v_CKH = (x[index][-(window or self.lengths[index]) :].double() for x in (self.k, self.v))
        q_KGH = self.q_BNH[index].double().unflatten(0, (self.cache.num_kv_heads, -1))
        s_KGC = torch.einsum("kgh,ckh->kgc", q_KGH, k_CKH) * SCALE
        return torch.einsum("kgc,ckh->kgh", s_KGC.softmax(-1), v_CKH).flatten(0, 1)


def make_case(
    lengths: list[int], heads: tuple[int, int, int], dtype: torch.dtype, seed: int = 0, shared: int = 0, page: int = 16
) -> Case:
    """The first `shared` pages are the same for all."""
    num_heads, num_kv_heads, head_dim = heads
    generator = torch.Generator().manual_seed(seed)
    num_pages = max(lengths) // page + 2
    cache = KVCache(LAYERS, len(lengths) * num_pages, page, num_kv_heads, head_dim, dtype, DEVICE)
    for layer in range(LAYERS):
        for store in cache.layer(layer):
            store.fill_(float("nan"))
    tables_BP = torch.randperm(len(lengths) * num_pages, generator=generator).view(len(lengths), num_pages)
    tables_BP[:, :shared] = tables_BP[:1, :shared]
    prefix = torch.randn(2, shared * page, num_kv_heads, head_dim, generator=generator)
    k, v = [], []
    for index, length in enumerate(lengths):
        own = torch.randn(2, length, num_kv_heads, head_dim, generator=generator)
        own[:, : shared * page] = prefix[:, :length]
        k_CKH, v_CKH = own.to(DEVICE, dtype)
        k.append(k_CKH)
        v.append(v_CKH)
        if length > 1:
            positions = torch.arange(length - 1)
            places = cache.places_of(tables_BP[index, positions // page].to(DEVICE), (positions % page).to(DEVICE))
            write_rows(*cache.layer(LAYER), places, k_CKH[:-1], v_CKH[:-1])
    q_BNH = torch.randn(len(lengths), num_heads, head_dim, generator=generator).to(DEVICE, dtype)
    return Case(cache, tables_BP.int().to(DEVICE), lengths, num_heads, k, v, q_BNH)


def check(case: Case, window: int | None, tiles: DecodeTiles | None = None) -> None:
    out_BNH = case.attend(window, tiles)
    for index in range(len(case.lengths)):
        error = (out_BNH[index].double() - case.twin(index, window)).abs().max()
        assert error <= TOLERANCE[out_BNH.dtype], (case.lengths[index], window, float(error))


SHAPES = [(6, 2, 16), (4, 4, 64), (4, 1, 24), (32, 1, 16), (2, 1, 256)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", SHAPES)
def test_rows_equal_plain_attention_at_the_borders_of_pages_and_splits(heads: tuple[int, int, int], dtype: torch.dtype):
    case = make_case([1, 2, 16, 17, 0, 64, 65, 66, 128, 129, 130, 257, 258], heads, dtype)
    for window in (None, 1, 2, 40, 130):
        check(case, window)


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_rows_are_merged_from_many_splits(dtype: torch.dtype):
    check(make_case([2000, 1153, 1154, 3], (6, 2, 16), dtype), None)
    check(make_case([2000, 1153, 700, 3], (6, 2, 16), dtype, page=64), 1100)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sequences_may_share_pages(dtype: torch.dtype):
    check(make_case([100, 161, 97, 300], (6, 2, 16), dtype, shared=6), None)


@pytest.mark.skipif(not IS_COMPILED, reason="too large for the interpreter")
@pytest.mark.parametrize("heads", [(32, 8, 128), (16, 8, 128), (4, 1, 256), (14, 2, 64)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_served_models_equal_plain_attention(heads: tuple[int, int, int], dtype: torch.dtype):
    case = make_case([1, 511, 512, 513, 514, 1026, 2047, 100], heads, dtype)
    for window in (None, 512):
        check(case, window)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=4).filter(any),
    window=st.none() | st.integers(1, 90),
    page=st.sampled_from([1, 8, 16, 24]),
    tiles=st.sampled_from([DecodeTiles(16, 16, 1, 1), DecodeTiles(32, 16, 4, 5), DecodeTiles(48, 32, 2, 2)]),
    seed=st.integers(0, 9),
)
def test_any_rows_equal_plain_attention(
    lengths: list[int], window: int | None, page: int, tiles: DecodeTiles, seed: int
):
    check(make_case(lengths, (4, 2, 16), torch.float32, seed, page=page), window, tiles)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 200])
def test_a_row_has_the_same_bits_alone_and_among_others(window: int | None, dtype: torch.dtype):
    case = make_case([1, 300, 0, 129, 130, 700], (6, 2, 16), dtype)
    together = case.attend(window)
    assert torch.equal(case.attend(window, extra_splits=4), together)
    for index, length in enumerate(case.lengths):
        if length:
            row = slice(index, index + 1)
            tables, q = case.tables_BP[row], case.q_BNH[row]
            alone = Case(case.cache, tables, [length], case.num_heads, case.k[row], case.v[row], q).attend(window)
            assert torch.equal(alone[0], together[index])


def test_the_new_token_is_stored_and_nothing_else():
    case = make_case([40, 0, 17, 300], (6, 2, 16), torch.float32)
    before = [store.clone() for layer in range(LAYERS) for store in case.cache.layer(layer)]
    case.attend(None)
    for store, new in zip(before[2 * LAYER :], (case.k, case.v), strict=False):
        for index, length in enumerate(case.lengths):
            if length:
                page = case.tables_BP[index, (length - 1) // 16].long()
                store[case.cache.rows_of(page[None])[:, 0], (length - 1) % 16] = new[index][-1]
    after = [store for layer in range(LAYERS) for store in case.cache.layer(layer)]
    for got, expected in zip(after, before, strict=True):
        assert torch.equal(got.nan_to_num(7.0), expected.nan_to_num(7.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 20])
def test_rows_that_follow_each_other_in_a_sequence_see_those_before_them(window: int | None, dtype: torch.dtype):
    whole = make_case([40, 70], (6, 2, 16), dtype)
    first = (31, 67)  # tokens that the cache holds
    rows = [(index, at) for index, start in enumerate(first) for at in range(start, whole.lengths[index])]
    for index, start in enumerate(first):  # what the cache has of the later ones is to be written
        for at in range(start, whole.lengths[index]):
            place = whole.cache.rows_of(whole.tables_BP[index, at // 16].long()[None])[:, 0]
            for store in whole.cache.layer(LAYER):
                store[place, at % 16] = float("nan")
    padding = [(0, -1)]
    lengths_B = torch.tensor([at + 1 for _, at in [*rows, *padding]], dtype=torch.int32, device=DEVICE)
    tables_BP = whole.tables_BP[[index for index, _ in [*rows, *padding]]]
    q_BNH = torch.randn(len(rows) + 1, 6, 16, device=DEVICE).to(dtype)
    k_BKH, v_BKH = (torch.stack([x[index][at] for index, at in [*rows, *padding]]) for x in (whole.k, whole.v))
    decode = DecodeAttention(whole.cache, tables_BP, lengths_B, 1)
    got = SliceAttention(whole.cache, tables_BP, lengths_B, decode).attend(LAYER, q_BNH, k_BKH, v_BKH, SCALE, window)
    for row, (index, at) in enumerate(rows):
        k, v = ([x[index][: at + 1]] for x in (whole.k, whole.v))
        alone = Case(whole.cache, tables_BP[row : row + 1], [at + 1], 6, k, v, q_BNH[row : row + 1])
        assert (got[row].double() - alone.twin(0, window)).abs().max() < TOLERANCE[dtype]
    assert not got[len(rows)].any()


def test_rows_may_lie_anywhere_among_others_and_be_strided():
    case = make_case([40, 0, 300], (6, 2, 16), torch.float32)
    expected = case.attend(None)
    rows = [3, 0, 1]
    width = 6 * 16 + 2 * 2 * 16
    packed_TO = torch.full((5, width), float("nan"), device=DEVICE)
    q, k, v = (x.unflatten(1, (-1, 16)) for x in packed_TO.split([96, 32, 32], 1))
    for index in (0, 2):
        for x, own in ((q, case.q_BNH), (k, case.new(case.k)), (v, case.new(case.v))):
            x[rows[index]] = own[index]
    rows_B = torch.tensor(rows, dtype=torch.int32, device=DEVICE)
    lengths_B = torch.tensor(case.lengths, dtype=torch.int32, device=DEVICE)
    num_splits = DecodeAttention.splits_for(case.cache, 300)
    attention = DecodeAttention(case.cache, case.tables_BP, lengths_B, num_splits, rows_B)
    out = torch.full((5, 6, 16), 5.0, device=DEVICE)
    attention.attend_into(out, LAYER, q, k, v, SCALE, None)
    assert torch.equal(out[[3, 1]], expected[[0, 2]])
    assert out[[0, 2, 4]].eq(5.0).all()
    assert not attention.attend(LAYER, q, k, v, SCALE, None)[[0, 2, 4]].any()


def test_padding_rows_give_zeros():
    case = make_case([0, 30], (6, 2, 16), torch.float32)
    attention, new_k, new_v = case.attention(), case.new(case.k), case.new(case.v)
    out = torch.full_like(case.q_BNH, float("nan"))
    attention.attend_into(out, LAYER, case.q_BNH, new_k, new_v, SCALE, None)
    assert not out[0].any()
    assert not out.isnan().any()


def test_buckets_of_splits_are_powers_of_two_and_hold_the_longest():
    cache = make_case([1], (6, 2, 16), torch.float32).cache
    split = tiles_of(cache).split_keys
    for longest in (1, 2, split, split + 1, split + 2, 5 * split, 8 * split + 2):
        num_splits = DecodeAttention.splits_for(cache, longest)
        assert num_splits == triton.next_power_of_2(num_splits)
        assert num_splits * split + 1 >= longest > (num_splits // 2 * split + 1 if num_splits > 1 else 0)
    assert math.log2(split).is_integer()


def test_written_rows_equal_those_of_the_plain_cache():
    plain = KVCache(1, 6, 4, 3, 24, torch.float32, torch.device("cpu"))
    mine = KVCache(1, 6, 4, 3, 24, torch.float32, DEVICE)
    k_TKH, v_TKH = torch.randn(2, 3, 5, 24).transpose(1, 2)
    places = plain.places_of(torch.tensor([4, 4, 4, 4, 1]), torch.tensor([0, 1, 2, 3, 0]))
    plain.write(0, places, k_TKH, v_TKH)
    write_rows(*mine.layer(0), places.to(DEVICE), k_TKH.to(DEVICE), v_TKH.to(DEVICE))
    for got, expected in zip(mine.layer(0), plain.layer(0), strict=True):
        assert torch.equal(got.cpu(), expected)


@pytest.mark.skipif(not IS_COMPILED, reason="needs CUDA")
def test_a_captured_graph_follows_the_tables_and_lengths():
    case = make_case([40, 300, 17], (6, 2, 16), torch.float32)
    lengths_B = torch.tensor(case.lengths, dtype=torch.int32, device=DEVICE)
    attention = DecodeAttention(case.cache, case.tables_BP, lengths_B, 4)
    new_k, new_v = case.new(case.k), case.new(case.v)
    attention.attend(LAYER, case.q_BNH, new_k, new_v, SCALE, None)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention.attend(LAYER, case.q_BNH, new_k, new_v, SCALE, None)
    lengths_B += 1
    expected = attention.attend(LAYER, case.q_BNH, new_k, new_v, SCALE, None)
    graph.replay()
    assert torch.equal(out, expected)
