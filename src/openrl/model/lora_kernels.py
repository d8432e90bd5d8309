"""Triton kernels for LoRA products of many adapters over packed rows.

Legend: T packed rows, D inputs, O outputs of all linears of a group, G linears of a group, R rank (padded), N = G * R,
S slots, K split of the sum over inputs.

A group is the linears that read the same input (q/k/v; gate/up; else one). Its adapters are stacked: A [S, N, D] and
B [S, O, R] (lora_tiles.GroupStack), scale [S] and rank [G, S] on the device. Rows come in tiles of one slot each
(lora_tiles.RowTiles); rows of no tile are left alone. Nothing here waits for the device or depends on values on the
host but shapes: all of it can be captured in a CUDA graph, and computes what the tables hold when the graph runs.

For the decode loop (model.grouped_lora):
    tiles = RowTiles.empty(num_tiles, DECODE_TILE_ROWS, device)   # num_tiles >= rows / 16 + distinct slots
    batch = Batch(..., segments=(), adapters=bank.with_tiles(tiles))
    tiles.refill(segments)                                        # before each replay; or write tiles.table_3N yourself
A graph must be captured anew when `bank.generation` has changed: the stacks then lie elsewhere.

The padding of a slot's rank up to the next multiple of 16 must be zeros; beyond that it is never read. O of every
linear is a multiple of 8, gradients start at 16 bytes.

Sums are in fp32 in a fixed order: a row's result does not depend on the other rows of a batch.
"""

# Parameters of kernels have the types of triton's compiler, which pyright does not know.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportArgumentType=false

import triton
import triton.language as tl

_VARYING = ["num_tiles", "num_rows", "num_pieces", "num_jobs"]


@triton.jit
def _input_of(index, p0, p1, p2):
    """The index-th of up to three tensors or numbers."""
    p = p0
    if index == 1:
        p = p1
    if index == 2:
        p = p2
    return p


@triton.jit
def _used(rank, column, r, slot, num_slots, is_in):
    """Which columns of a stack lie within the slot's ranks, in whole sixteens: loads of 16 bytes need no finer mask."""
    limit = tl.load(rank + (column // r) * num_slots + slot, mask=is_in, other=0)
    return tl.max_constancy(is_in & ((column % r) // 16 * 16 < limit), 16)


@triton.jit(do_not_specialize=_VARYING)
def shrink_kernel(
    x0, x1, x2, w, out, scale, rank, tiles,
    num_tiles, num_rows, num_slots, columns, r, k0, k1, k2, sx0, sx1, sx2, sw_slot, sw_k, sw_n,
    INPUTS: tl.constexpr, SCALED: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out[split, rows, columns] = x[rows, k] w[slot, k, columns], times the slot's scale where SCALED.

    INPUTS > 1: each input has its own columns (r of them) and its own stretch of k in w.
    """
    tile = tl.program_id(0)
    slot = tl.load(tiles + tile)
    if slot < 0:
        return
    first = tl.load(tiles + num_tiles + tile).to(tl.int64)
    rows = tl.load(tiles + 2 * num_tiles + tile)
    own = columns
    if INPUTS > 1:
        own = r
    blocks = tl.cdiv(own, BLOCK_N)
    index = tl.program_id(1) // blocks
    n = (tl.program_id(1) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = index * own + n
    is_used = _used(rank, column, r, slot, num_slots, n < own)
    x, num_k, sx = x0, k0, sx0
    if INPUTS > 1:
        x = tl.multiple_of(_input_of(index, x0, x1, x2), 16)
        num_k = tl.multiple_of(_input_of(index, k0, k1, k2), 8)
        sx = tl.multiple_of(_input_of(index, sx0, sx1, sx2), 8)
    first_k = 0
    if index >= 1:
        first_k = k0
    if index == 2:
        first_k = k0 + k1
    t = tl.arange(0, BLOCK_T)
    k = tl.arange(0, BLOCK_K)
    n_w = n
    if INPUTS == 1:
        n_w = column
    x_at = x + first * sx + t[:, None] * sx + k[None, :]
    w_at = w + slot.to(tl.int64) * sw_slot + (first_k + k)[:, None] * sw_k + n_w[None, :] * sw_n
    start = tl.program_id(2) * SPLIT
    stop = num_k
    if SPLIT > 0:
        stop = tl.minimum(start + SPLIT, num_k)
    acc = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    for at in range(start, stop, BLOCK_K):
        is_in = at + k < stop
        x_TK = tl.load(x_at + at, mask=(t < rows)[:, None] & is_in[None, :], other=0.0)
        w_KN = tl.load(w_at + at * sw_k, mask=is_in[:, None] & is_used[None, :], other=0.0)
        acc = tl.dot(x_TK, w_KN, acc, input_precision=PRECISION)
    if SCALED:
        acc = acc * tl.load(scale + slot)
    split = tl.program_id(2).to(tl.int64)
    out_at = out + (split * num_rows + first) * columns + t[:, None] * columns + column[None, :]
    tl.store(out_at, acc.to(out.dtype.element_ty), mask=(t < rows)[:, None] & (n < own)[None, :])


@triton.jit(do_not_specialize=_VARYING)
def expand_kernel(
    xa, w, y, scale, rank, tiles,
    num_tiles, num_rows, num_slots, columns, r, c0, c1, c2, sy, sw_slot, sw_c, sw_n,
    INNER: tl.constexpr, SCALED: tl.constexpr, SPLITS: tl.constexpr, BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y[rows, c] += sum over n of xa[rows, n] w[slot, c, n], times the slot's scale where SCALED; in place.

    The outputs come in up to three parts; part p uses the columns [p * r, p * r + INNER) of xa, summed over the splits.
    """
    tile = tl.program_id(0)
    slot = tl.load(tiles + tile)
    if slot < 0:
        return
    first = tl.load(tiles + num_tiles + tile).to(tl.int64)
    rows = tl.load(tiles + 2 * num_tiles + tile)
    block = tl.program_id(1)
    blocks0 = tl.cdiv(c0, BLOCK_C)
    blocks1 = tl.cdiv(c1, BLOCK_C)
    part = 0
    first_c = 0
    num_c = c0
    if block >= blocks0:
        part = 1
        first_c = c0
        num_c = c1
        block -= blocks0
        if block >= blocks1:
            part = 2
            first_c = c0 + c1
            num_c = c2
            block -= blocks1
    t = tl.arange(0, BLOCK_T)
    own_c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    c = first_c + own_c
    is_row = t < rows
    y_at = y + first * sy + t[:, None] * sy + c[None, :]
    mask = is_row[:, None] & (own_c < num_c)[None, :]
    # Few rows: latency is all, and every load that can be on its way before the first product is.
    if SPLITS > 1:
        y_TC = tl.load(y_at, mask=mask, other=0.0)
    factor = 1.0
    if SCALED:
        factor = tl.load(scale + slot)
        limit = tl.load(rank + part * num_slots + slot)
    acc = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    for start in tl.static_range(0, INNER, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        column = part * r + n
        if SCALED:  # the columns of one part, so that one rank limits them
            is_used = tl.max_constancy((n < INNER) & (n // 16 * 16 < limit), 16)
        else:
            is_used = _used(rank, column, r, slot, num_slots, n < INNER)
        xa_at = xa + first * columns + t[:, None] * columns + column[None, :]
        is_used_TN = is_row[:, None] & is_used[None, :]
        if SPLITS > 1:
            # Splits in the middle: threads lie along rows and columns, and each sums its own.
            split = tl.arange(0, BLOCK_S)[None, :, None]
            parts_at = xa_at[:, None, :] + split * num_rows.to(tl.int64) * columns
            is_part = (split < SPLITS) & is_used_TN[:, None, :]
            xa_TSN = tl.load(parts_at, mask=is_part, other=0.0)
            tl.debug_barrier()  # keeps the order: else the assembler waits for w before it asks for xa
        else:
            xa_TN = tl.load(xa_at, mask=is_used_TN, other=0.0).to(w.dtype.element_ty)
        w_at = w + slot.to(tl.int64) * sw_slot + c[None, :] * sw_c + n[:, None] * sw_n
        w_NC = tl.load(w_at, mask=(own_c < num_c)[None, :] & is_used[:, None], other=0.0)
        if SPLITS > 1:
            xa_TN = tl.sum(xa_TSN, axis=1).to(w.dtype.element_ty)
        acc = tl.dot(xa_TN, w_NC, acc, input_precision=PRECISION)
    if SPLITS == 1:
        y_TC = tl.load(y_at, mask=mask, other=0.0)
    tl.store(y_at, (y_TC.to(tl.float32) + acc * factor).to(y.dtype.element_ty), mask=mask)


@triton.jit
def _add_wide_narrow(
    at, wide, narrow, factor, s_wide, s_narrow, pieces, first_piece, last_piece, num_pieces, c, n, num_c, is_used, mask,
    WIDE_FIRST: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add factor * sum over rows of narrow[row, n] wide[row, c] at [N, C] (WIDE_FIRST: [C, N]), piece by piece."""
    t = tl.arange(0, BLOCK_T)
    for piece in range(first_piece, last_piece):
        first = tl.load(pieces + piece).to(tl.int64)
        rows = tl.load(pieces + num_pieces + piece)
        acc = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
        for start in range(0, rows, BLOCK_T):
            is_row = start + t < rows
            row = first + start + t
            wide_at = wide + row[:, None] * s_wide + c[None, :]
            wide_TC = tl.load(wide_at, mask=is_row[:, None] & (c < num_c)[None, :], other=0.0)
            narrow_at = narrow + row[:, None] * s_narrow + n[None, :]
            narrow_TN = tl.load(narrow_at, mask=is_row[:, None] & is_used[None, :], other=0.0)
            acc = tl.dot(tl.trans(narrow_TN), wide_TC, acc, input_precision=PRECISION)
        acc = acc * factor
        if WIDE_FIRST:
            tl.store(at, tl.load(at, mask=mask, other=0.0) + tl.trans(acc), mask=mask)
        else:
            tl.store(at, tl.load(at, mask=mask, other=0.0) + acc, mask=mask)


@triton.jit(do_not_specialize=_VARYING)
def grad_kernel(
    x, g0, g1, g2, xa, gb, scale, rank, jobs, pieces, address,
    num_pieces, num_jobs, num_slots, columns, r, d, c0, c1, c2, sx, sg0, sg1, sg2,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_NA: tl.constexpr, BLOCK_NB: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dA += gb^T x and dB += scale g^T xa of the pieces of one job, in fp32 at the job's addresses.

    One program owns one block of a job's dA or dB; it adds the job's pieces one after the other, in order.
    """
    job = tl.program_id(1)
    slot = tl.load(jobs + job)
    first_piece = tl.load(jobs + num_jobs + job)
    last_piece = first_piece + tl.load(jobs + 2 * num_jobs + job)
    if last_piece == first_piece:
        return
    block = tl.program_id(0)
    blocks_d = tl.cdiv(d, BLOCK_C)
    blocks_a = blocks_d * tl.cdiv(columns, BLOCK_NA)
    if block < blocks_a:
        n = (block // blocks_d) * BLOCK_NA + tl.arange(0, BLOCK_NA)
        c = (block % blocks_d) * BLOCK_C + tl.arange(0, BLOCK_C)
        limit = tl.load(rank + (n // r) * num_slots + slot, mask=n < columns, other=0)
        da = tl.load(address + ((n // r) * num_jobs + job) * 2, mask=n < columns, other=0)
        is_used = (n < columns) & (n % r < limit) & (da != 0)
        at = da.to(tl.pointer_type(tl.float32))[:, None] + (n % r)[:, None] * d + c[None, :]
        _add_wide_narrow(
            at, x, gb, 1.0, sx, columns, pieces, first_piece, last_piece, num_pieces, c, n, d, n < columns,
            is_used[:, None] & (c < d)[None, :], False, BLOCK_T, BLOCK_C, BLOCK_NA, PRECISION,
        )  # fmt: skip
    else:
        block -= blocks_a
        blocks_r = tl.cdiv(r, BLOCK_NB)
        first_n = (block % blocks_r) * BLOCK_NB
        block = block // blocks_r
        blocks0 = tl.cdiv(c0, BLOCK_C)
        blocks1 = tl.cdiv(c1, BLOCK_C)
        part = 0
        if block >= blocks0:
            part = 1
            block -= blocks0
            if block >= blocks1:
                part = 2
                block -= blocks1
        num_c = tl.multiple_of(_input_of(part, c0, c1, c2), 8)
        sg = tl.multiple_of(_input_of(part, sg0, sg1, sg2), 8)
        g = tl.multiple_of(_input_of(part, g0, g1, g2), 16)
        nb = first_n + tl.arange(0, BLOCK_NB)
        cb = block * BLOCK_C + tl.arange(0, BLOCK_C)
        limit_b = tl.load(rank + part * num_slots + slot)
        db = tl.load(address + (part * num_jobs + job) * 2 + 1)
        is_used_b = (nb < r) & (nb < limit_b) & (db != 0)
        at_b = db.to(tl.pointer_type(tl.float32)) + cb[:, None] * limit_b + nb[None, :]
        _add_wide_narrow(
            at_b, g, xa + part * r, tl.load(scale + slot), sg, columns, pieces, first_piece, last_piece, num_pieces,
            cb, nb, num_c, nb < r,
            is_used_b[None, :] & (cb < num_c)[:, None], True, BLOCK_T, BLOCK_C, BLOCK_NB, PRECISION,
        )  # fmt: skip


@triton.jit
def copy_kernel(table, BLOCK: tl.constexpr, SOURCE: tl.constexpr, TARGET: tl.constexpr):
    """Copy matrices: rows of the table are source, target, number of values, row length, row stride of the target."""
    entry = table + tl.program_id(0).to(tl.int64) * 5
    source = tl.load(entry).to(tl.pointer_type(SOURCE))
    target = tl.load(entry + 1).to(tl.pointer_type(TARGET))
    num_values = tl.load(entry + 2)
    length = tl.load(entry + 3)
    stride = tl.load(entry + 4)
    for start in range(tl.program_id(1) * BLOCK, num_values, tl.num_programs(1) * BLOCK):
        i = start + tl.arange(0, BLOCK)
        values = tl.load(source + i, mask=i < num_values)
        tl.store(target + (i // length) * stride + i % length, values.to(TARGET), mask=i < num_values)
