"""Triton kernels of the attention of single rows over the paged cache.

Legend: B sequences, N query heads, K key-value heads, H head dim, E tokens of a page, S splits,
R query heads of one key-value head, padded to what a matrix product takes, C keys of a tile.

A split is a fixed number of keys from the first that a row sees, so a row's bits depend on its own sequence alone.
"""

# Parameters of a kernel carry no types: Triton gives them its own.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false

import triton
import triton.language as tl

MERGE_SPLITS = 8
"""Splits that the merge reads at once; fixed, as the order of the sum depends on it."""


@triton.jit
def attend_new_key(q_RH, k_ptr, v_ptr, key_ptr, value_ptr, scale_log2, is_first, HEAD_DIM: tl.constexpr):
    """The state, see attend_keys, of the first split with the new key alone, which it stores; of others, empty."""
    h_H = tl.arange(0, q_RH.shape[1])
    k_H = tl.load(k_ptr + h_H, mask=h_H < HEAD_DIM, other=0.0)
    v_H = tl.load(v_ptr + h_H, mask=h_H < HEAD_DIM, other=0.0)
    tl.store(key_ptr + h_H, k_H, mask=(h_H < HEAD_DIM) & is_first)
    tl.store(value_ptr + h_H, v_H, mask=(h_H < HEAD_DIM) & is_first)
    s_R = tl.sum(q_RH.to(tl.float32) * k_H.to(tl.float32)[None, :], 1) * scale_log2
    highest_R = tl.where(is_first, s_R, float("-inf"))
    total_R = tl.where(is_first, tl.full([q_RH.shape[0]], 1.0, tl.float32), 0.0)
    sum_RH = tl.where(is_first, tl.zeros(q_RH.shape, tl.float32) + v_H.to(tl.float32)[None, :], 0.0)
    return highest_R, total_R, sum_RH


@triton.jit
def attend_keys(
    q_RH,
    keys_ptr,
    values_ptr,
    table_ptr,
    start,
    stop,
    scale_log2,
    state,
    NUMEL: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    TILE_KEYS: tl.constexpr,
):
    """Add the keys [start, stop) to the state: the highest score (base 2), the sum of weights, the weighted values."""
    highest_R, total_R, sum_RH = state
    h_H = tl.arange(0, q_RH.shape[1])
    for base in range(start, stop, TILE_KEYS):
        position_C = base + tl.arange(0, TILE_KEYS)
        is_seen_C = position_C < stop
        page_C = tl.load(table_ptr + position_C // PAGE_TOKENS, mask=is_seen_C, other=0).to(tl.int64)
        place_C = page_C * NUMEL + position_C % PAGE_TOKENS * HEAD_DIM
        place_CH = place_C[:, None] + h_H[None, :]
        is_seen_CH = is_seen_C[:, None] & (h_H < HEAD_DIM)[None, :]
        # Masked, not only weighted with 0: what lies in a page behind its tokens may be NaN.
        k_CH = tl.load(keys_ptr + place_CH, mask=is_seen_CH, other=0.0)
        s_RC = tl.dot(q_RH, tl.trans(k_CH), input_precision="ieee") * scale_log2
        s_RC = tl.where(is_seen_C[None, :], s_RC, float("-inf"))
        higher_R = tl.maximum(highest_R, tl.max(s_RC, 1))
        p_RC = tl.exp2(s_RC - higher_R[:, None])
        decay_R = tl.exp2(highest_R - higher_R)
        total_R = total_R * decay_R + tl.sum(p_RC, 1)
        v_CH = tl.load(values_ptr + place_CH, mask=is_seen_CH, other=0.0)
        sum_RH = tl.dot(p_RC.to(v_CH.dtype), v_CH, sum_RH * decay_R[:, None], input_precision="ieee")
        highest_R = higher_R
    return highest_R, total_R, sum_RH


@triton.jit
def decode_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    keys_ptr,
    values_ptr,
    tables_ptr,
    lengths_ptr,
    rows_ptr,
    parts_ptr,
    lse_ptr,
    scale_log2,
    window,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    table_row,
    NUM_KV_HEADS: tl.constexpr,
    PER_GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    TILE_KEYS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,
    HAS_ROWS: tl.constexpr,
):
    """One split of one sequence for the query heads of one key-value head; grid (K, B, S).

    The new key and value come from k and v, belong to the first split, and are stored in the cache by it; the splits
    cover the keys before. A row of one split is done here, parts and log-sum-exps (base 2) of more go to the merge.
    """
    head = tl.program_id(0)
    sequence = tl.program_id(1)
    split = tl.program_id(2)
    num_heads: tl.constexpr = NUM_KV_HEADS * PER_GROUP
    # Elements of a block.
    numel: tl.constexpr = NUM_KV_HEADS * PAGE_TOKENS * HEAD_DIM
    length = tl.load(lengths_ptr + sequence)
    row = tl.load(rows_ptr + sequence) if HAS_ROWS else sequence
    row = row.to(tl.int64)
    r_R = tl.arange(0, BLOCK_R)
    h_H = tl.arange(0, BLOCK_H)
    head_R = head * PER_GROUP + r_R
    in_RH = (r_R < PER_GROUP)[:, None] & (h_H < HEAD_DIM)[None, :]
    out_RH = (row * num_heads + head_R)[:, None] * HEAD_DIM + h_H[None, :]
    if length == 0:
        if not HAS_ROWS:
            tl.store(out_ptr + out_RH, tl.zeros_like(out_RH).to(out_ptr.dtype.element_ty), mask=in_RH & (split == 0))
        return
    first = tl.maximum(length - window, 0)
    last = length - 1
    start = first + split * SPLIT_KEYS
    if (split > 0) & (start >= last):
        return
    stop = tl.minimum(start + SPLIT_KEYS, last)
    table_ptr = tables_ptr + sequence.to(tl.int64) * table_row

    keys_ptr += head * PAGE_TOKENS * HEAD_DIM
    values_ptr += head * PAGE_TOKENS * HEAD_DIM
    place = tl.load(table_ptr + last // PAGE_TOKENS).to(tl.int64) * numel + last % PAGE_TOKENS * HEAD_DIM
    k_ptr += row * k_row + head * k_head
    v_ptr += row * v_row + head * v_head
    q_RH = tl.load(q_ptr + row * q_row + head_R[:, None] * q_head + h_H[None, :], mask=in_RH, other=0.0)
    state = attend_new_key(q_RH, k_ptr, v_ptr, keys_ptr + place, values_ptr + place, scale_log2, split == 0, HEAD_DIM)
    highest_R, total_R, sum_RH = attend_keys(
        q_RH, keys_ptr, values_ptr, table_ptr, start, stop, scale_log2, state, numel, HEAD_DIM, PAGE_TOKENS, TILE_KEYS
    )
    sum_RH = sum_RH / total_R[:, None]
    if last - first <= SPLIT_KEYS:
        tl.store(out_ptr + out_RH, sum_RH.to(out_ptr.dtype.element_ty), mask=in_RH)
    else:
        part_R = (sequence.to(tl.int64) * num_heads + head_R) * tl.num_programs(2) + split
        tl.store(parts_ptr + part_R[:, None] * HEAD_DIM + h_H[None, :], sum_RH, mask=in_RH)
        tl.store(lse_ptr + part_R, highest_R + tl.log2(total_R), mask=r_R < PER_GROUP)


@triton.jit
def merge_kernel(
    out_ptr,
    parts_ptr,
    lse_ptr,
    lengths_ptr,
    rows_ptr,
    window,
    num_splits,
    HEAD_DIM: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
    HAS_ROWS: tl.constexpr,
):
    """The output of one query head of one row of several splits; grid (N, B)."""
    head = tl.program_id(0)
    sequence = tl.program_id(1)
    num_heads = tl.num_programs(0)
    length = tl.load(lengths_ptr + sequence)
    num_keys = tl.minimum(length, window) - 1
    if num_keys <= SPLIT_KEYS:
        return
    used = (num_keys + SPLIT_KEYS - 1) // SPLIT_KEYS
    first_part = (sequence.to(tl.int64) * num_heads + head) * num_splits
    h_H = tl.arange(0, BLOCK_H)
    highest = float("-inf")
    total = 0.0
    sum_H = tl.zeros([BLOCK_H], tl.float32)
    for base in range(0, used, BLOCK_S):
        s_S = base + tl.arange(0, BLOCK_S)
        lse_S = tl.load(lse_ptr + first_part + s_S, mask=s_S < used, other=float("-inf"))
        part_SH = tl.load(
            parts_ptr + (first_part + s_S)[:, None] * HEAD_DIM + h_H[None, :],
            mask=(s_S < used)[:, None] & (h_H < HEAD_DIM)[None, :],
            other=0.0,
        )
        higher = tl.maximum(highest, tl.max(lse_S, 0))
        weight_S = tl.exp2(lse_S - higher)
        decay = tl.exp2(highest - higher)
        total = total * decay + tl.sum(weight_S, 0)
        sum_H = sum_H * decay + tl.sum(weight_S[:, None] * part_SH, 0)
        highest = higher
    row = tl.load(rows_ptr + sequence) if HAS_ROWS else sequence
    place = (row.to(tl.int64) * num_heads + head) * HEAD_DIM
    tl.store(out_ptr + place + h_H, (sum_H / total).to(out_ptr.dtype.element_ty), mask=h_H < HEAD_DIM)
