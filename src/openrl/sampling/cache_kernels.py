"""The Triton kernel that writes the keys and values of new tokens to their pages.

Legend: T packed rows, K key-value heads, H head dim, P pages of the cache, E tokens of a page.
"""

# Parameters of a kernel carry no types: Triton gives them its own.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false

from typing import Any

import triton
import triton.language as tl
from jaxtyping import Float, Int64
from torch import Tensor

NOWHERE = -1
"""In place of a token's place: it is not stored."""


@triton.jit
def write_kernel(
    k_ptr,
    v_ptr,
    keys_ptr,
    values_ptr,
    places_ptr,
    k_row,
    k_head,
    v_row,
    v_head,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """The keys and values of one token, to `KVCache.places_of` it, unless that is NOWHERE; grid (T,)."""
    token = tl.program_id(0).to(tl.int64)
    k_K = tl.arange(0, BLOCK_K)
    h_H = tl.arange(0, BLOCK_H)
    place_K = tl.load(places_ptr + token * NUM_KV_HEADS + k_K, mask=k_K < NUM_KV_HEADS, other=-1)
    in_KH = (place_K >= 0)[:, None] & (h_H < HEAD_DIM)[None, :]
    place_KH = place_K[:, None] * HEAD_DIM + h_H[None, :]
    k_KH = tl.load(k_ptr + token * k_row + k_K[:, None] * k_head + h_H[None, :], mask=in_KH)
    v_KH = tl.load(v_ptr + token * v_row + k_K[:, None] * v_head + h_H[None, :], mask=in_KH)
    tl.store(keys_ptr + place_KH, k_KH, mask=in_KH)
    tl.store(values_ptr + place_KH, v_KH, mask=in_KH)


_write: Any = write_kernel  # Triton's launch arguments are not in its types


def write_rows(
    keys: Float[Tensor, "PK E H"],
    values: Float[Tensor, "PK E H"],
    places_TK: Int64[Tensor, " TK"],
    k_TKH: Float[Tensor, "T K H"],
    v_TKH: Float[Tensor, "T K H"],
) -> None:
    """Store the keys and values of tokens at `KVCache.places_of` them, in one launch."""
    num_tokens, num_kv_heads, head_dim = k_TKH.shape
    if not num_tokens:
        return
    k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (k_TKH, v_TKH))
    _write[(num_tokens,)](
        k,
        v,
        keys,
        values,
        places_TK,
        *k.stride()[:2],
        *v.stride()[:2],
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_K=triton.next_power_of_2(num_kv_heads),
        BLOCK_H=triton.next_power_of_2(head_dim),
        num_warps=max(1, min(4, num_kv_heads * head_dim // 256)),
    )
