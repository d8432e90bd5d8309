"""Attention whose result for a row does not depend on what else is computed with it.

Legend: G groups (a sequence and one of its key-value heads), R query rows of a group, C keys, H head dim.

Keys are taken in blocks of KEY_BLOCK, aligned to the start of the sequence, and accumulated block by
block in fp32. Blocks that a row may not see add exact zeros, and products run over multiples of
ROW_MULTIPLE rows, so prefill in any chunking, decode, and training give a row the same bits on CPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import Function, FunctionCtx
from torch.nn.attention.bias import causal_lower_right
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from openrl.model.batch import ROW_MULTIPLE, Segment
from openrl.model.flash_attention import FlashAttention, takes_flash

KEY_BLOCK = 128

MAX_SIBLING_KEYS = 2**14
"""Keys that sequences computed together hold, the prefix counted for each: bounds the memory of its copies."""


def blocked_attention(
    q_GRH: Float[Tensor, "G R H"],
    k_GCH: Float[Tensor, "G C H"],
    v_GCH: Float[Tensor, "G C H"],
    positions_GR: Int64[Tensor, "G R"],
    scale: float,
    window: int | None,
) -> tuple[Float[Tensor, "G R H"], Float[Tensor, "G R"]]:
    """Attention of rows at `positions` over keys at 0, 1, ... C - 1; also the log-sum-exp of their scores.

    Row r sees key j iff positions[r] - window < j <= positions[r]. R must be a multiple of ROW_MULTIPLE
    and C of KEY_BLOCK; rows at position -1 are padding and give zeros. Not differentiable.
    """
    first, last = _visible_blocks(positions_GR, k_GCH.shape[1], window)
    scores = [_scores(q_GRH, k_GCH, positions_GR, block, scale, window) for block in range(first, last)]
    highest_GR = torch.stack([s.amax(-1) for s in scores]).amax(0)
    highest_GR = highest_GR.masked_fill(highest_GR == float("-inf"), 0.0)
    out_GRH = torch.zeros(q_GRH.shape, dtype=torch.float32, device=q_GRH.device)
    total_GR = torch.zeros_like(highest_GR)
    for block, s_GRC in zip(range(first, last), scores, strict=True):
        p_GRC = torch.exp(s_GRC.sub_(highest_GR[..., None]))
        total_GR = total_GR + p_GRC.sum(-1)
        v = _block(v_GCH, block)
        out_GRH = out_GRH + torch.bmm(p_GRC.to(v.dtype), v).float()
    safe_GR = total_GR.masked_fill(total_GR == 0.0, 1.0)
    return (out_GRH / safe_GR[..., None]).to(q_GRH.dtype), highest_GR + torch.log(safe_GR)


def _visible_blocks(positions_GR: Tensor, num_keys: int, window: int | None) -> tuple[int, int]:
    """Blocks that some row sees. Leaving out the others is exact: they would add zeros."""
    last_position = int(positions_GR.max())
    last = min(last_position // KEY_BLOCK + 1, num_keys // KEY_BLOCK)
    if window is None:
        return 0, max(last, 1)
    lowest = int(positions_GR.masked_fill(positions_GR < 0, last_position).min())
    return max(lowest - window + 1, 0) // KEY_BLOCK, max(last, 1)


def _block(x_GCH: Tensor, block: int) -> Tensor:
    return x_GCH[:, block * KEY_BLOCK : (block + 1) * KEY_BLOCK]


def _scores(q_GRH: Tensor, k_GCH: Tensor, positions_GR: Tensor, block: int, scale: float, window: int | None) -> Tensor:
    """Scaled scores of one block of keys, -inf where a row may not look; fp32."""
    s_GRC = torch.bmm(q_GRH, _block(k_GCH, block).transpose(1, 2)).float().mul_(scale)
    keys_C = torch.arange(block * KEY_BLOCK, (block + 1) * KEY_BLOCK, device=q_GRH.device)
    hidden_GRC = keys_C > positions_GR[..., None]
    if window is not None:
        hidden_GRC |= keys_C <= positions_GR[..., None] - window
    return s_GRC.masked_fill_(hidden_GRC, float("-inf"))


class _BlockedAttention(Function):
    """blocked_attention with a backward pass that recomputes the probabilities block by block."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, scale: float, window: int | None
    ) -> Tensor:
        out, lse = blocked_attention(q, k, v, positions, scale, window)
        ctx.save_for_backward(q, k, v, positions, out, lse)
        ctx.scale, ctx.window = scale, window
        return out

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Any) -> Any:
        saved: Any = ctx
        q, k, v, positions, out, lse = saved.saved_tensors
        dout: Tensor = grads[0].contiguous()
        first, last = _visible_blocks(positions, k.shape[1], saved.window)
        delta_GR = (dout.float() * out.float()).sum(-1)
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for block in range(first, last):
            s_GRC = _scores(q, k, positions, block, saved.scale, saved.window)
            p_GRC = torch.exp(s_GRC - lse[..., None])
            dp_GRC = torch.bmm(dout, _block(v, block).transpose(1, 2)).float()
            ds_GRC = (p_GRC * (dp_GRC - delta_GR[..., None]) * saved.scale).to(q.dtype)
            _block(dv, block).copy_(torch.bmm(p_GRC.to(dout.dtype).transpose(1, 2), dout))
            _block(dk, block).copy_(torch.bmm(ds_GRC.transpose(1, 2), q))
            dq += torch.bmm(ds_GRC, _block(k, block))
        return dq, dk, dv, None, None, None


def group_rows(q_LNH: Float[Tensor, "L N H"], num_kv_heads: int) -> Float[Tensor, "K R H"]:
    """Query rows of the heads that share a key-value head, side by side; R padded to ROW_MULTIPLE.

    Row g * L + l of group k is query head k * (N / K) + g at row l.
    """
    length, num_heads, head_dim = q_LNH.shape
    per_group = num_heads // num_kv_heads
    rows = q_LNH.reshape(length, num_kv_heads, per_group, head_dim).permute(1, 2, 0, 3)
    rows = rows.reshape(num_kv_heads, per_group * length, head_dim)
    padding = -rows.shape[1] % ROW_MULTIPLE
    return torch.nn.functional.pad(rows, (0, 0, 0, padding)) if padding else rows


def ungroup_rows(out_KRH: Float[Tensor, "K R H"], length: int, num_heads: int) -> Float[Tensor, "L N H"]:
    """The inverse of group_rows."""
    num_kv_heads, _, head_dim = out_KRH.shape
    per_group = num_heads // num_kv_heads
    out = out_KRH[:, : per_group * length].reshape(num_kv_heads, per_group, length, head_dim)
    return out.permute(2, 0, 1, 3).reshape(length, num_heads, head_dim)


def group_positions(first: int, length: int, per_group: int, device: torch.device) -> Int64[Tensor, " R"]:
    """Positions of the rows that group_rows makes of a chunk starting at position `first`."""
    positions = torch.arange(first, first + length, device=device).repeat(per_group)
    return torch.nn.functional.pad(positions, (0, -positions.shape[0] % ROW_MULTIPLE), value=-1)


def pad_keys(x_CKH: Float[Tensor, "C K H"]) -> Float[Tensor, "K P H"]:
    """Keys or values of one sequence by head, padded with zeros to whole blocks."""
    x_KCH = x_CKH.transpose(0, 1)
    padding = -x_KCH.shape[1] % KEY_BLOCK
    return torch.nn.functional.pad(x_KCH, (0, 0, 0, padding)) if padding else x_KCH.contiguous()


class PackedAttention:
    """Causal attention inside each sequence of a packed batch, whole sequences at once (training)."""

    def __init__(self, segments: tuple[Segment, ...], deterministic: bool = False) -> None:
        """`deterministic`: gradients repeat to the bit on CUDA too; slower there."""
        self._segments = segments
        self._deterministic = deterministic
        self._flash: FlashAttention | None = None  # made by the first layer, on its device
        self._lengths = [segment.length for segment in segments]
        self._siblings = _find_siblings(segments)

    def attend(
        self,
        layer: int,
        q_TNH: Float[Tensor, "T N H"],
        k_TKH: Float[Tensor, "T K H"],
        v_TKH: Float[Tensor, "T K H"],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "T N H"]:
        """See model.batch.Attention; differentiable in q, k and v."""
        del layer
        if takes_flash(q_TNH):
            if self._flash is None:
                self._flash = FlashAttention(self._segments, q_TNH.shape[0], q_TNH.device, self._deterministic)
            return self._flash.attend(q_TNH, k_TKH, v_TKH, scale, window)
        return self.attend_each(q_TNH, k_TKH, v_TKH, scale, window)

    def attend_each(
        self,
        q_TNH: Float[Tensor, "T N H"],
        k_TKH: Float[Tensor, "T K H"],
        v_TKH: Float[Tensor, "T K H"],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "T N H"]:
        """The same sequence by sequence: CPU, and types that the flash kernels do not take."""
        sizes = [*self._lengths, q_TNH.shape[0] - sum(self._lengths)]
        q, k, v = (x.split(sizes) for x in (q_TNH, k_TKH, v_TKH))
        outs: list[Tensor] = []
        for each in self._siblings:
            own = slice(each.first, each.stop)
            if each.parent < 0:
                outs.append(_attend_sequence(q[each.first], k[each.first], v[each.first], scale, window))
            else:
                # Recomputed in the backward pass, which then holds no copies of the prefix's keys and values.
                outs += checkpoint(
                    _attend_siblings,
                    q[own],
                    (k[each.parent], *k[own]),
                    (v[each.parent], *v[own]),
                    scale,
                    window,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
        return torch.cat([*outs, torch.zeros_like(q[-1])])


@dataclass(frozen=True, slots=True)
class _Siblings:
    """Segments [first, stop) that are computed together: one without a parent, or several of one parent."""

    parent: int
    first: int
    stop: int


def _find_siblings(segments: Sequence[Segment]) -> list[_Siblings]:
    """All segments in order; siblings stay together while that wastes little and holds few keys."""
    found: list[_Siblings] = []
    num_rows = longest = 0
    for index, segment in enumerate(segments):
        last = found[-1] if found else None
        if last is not None and segment.parent >= 0 and segment.parent == last.parent:
            num_rows, longest = num_rows + segment.length, max(longest, segment.length)
            size = index + 1 - last.first
            num_keys = size * (segments[segment.parent].length + longest)
            if size * longest <= 2 * num_rows and num_keys <= MAX_SIBLING_KEYS:
                found[-1] = _Siblings(last.parent, last.first, index + 1)
                continue
        found.append(_Siblings(segment.parent, index, index + 1))
        num_rows = longest = segment.length
    return found


def _attend_siblings(
    q: Sequence[Float[Tensor, "_ N H"]],
    k: Sequence[Float[Tensor, "_ K H"]],
    v: Sequence[Float[Tensor, "_ K H"]],
    scale: float,
    window: int | None,
) -> list[Float[Tensor, "_ N H"]]:
    """Causal attention of sequences that go on from one prefix; the first of `k` and of `v` are the prefix's.

    They are computed as one sequence with the heads of all: padded to the longest, whose further keys
    a shorter one's rows come before and do not see.
    """
    q_LSNH = pad_sequence(list(q))
    num_sequences, num_heads = q_LSNH.shape[1:3]
    k_CKH, v_CKH = (_prefixed(x[0], x[1:]) for x in (k, v))
    out_LNH = _attend_sequence(q_LSNH.flatten(1, 2), k_CKH, v_CKH, scale, window)
    out_LSNH = out_LNH.unflatten(1, (num_sequences, num_heads))
    return [out_LSNH[: each.shape[0], index] for index, each in enumerate(q)]


def _prefixed(prefix_PKH: Tensor, own: Sequence[Tensor]) -> Float[Tensor, "C S*K H"]:
    """Keys or values of several sequences with the prefix before each, head after head."""
    own_LSKH = pad_sequence(list(own))
    prefix_PSKH = prefix_PKH[:, None].expand(-1, len(own), -1, -1)
    return torch.cat([prefix_PSKH, own_LSKH]).flatten(1, 2)


def _attend_sequence(
    q_LNH: Tensor, k_CKH: Tensor, v_CKH: Tensor, scale: float, window: int | None
) -> Float[Tensor, "L N H"]:
    """Causal attention of the last L rows of a sequence of C keys."""
    length, num_heads, _ = q_LNH.shape
    num_keys, num_kv_heads, _ = k_CKH.shape
    if q_LNH.is_cuda:
        return _attend_sequence_sdpa(q_LNH, k_CKH, v_CKH, scale, window)
    positions_R = group_positions(num_keys - length, length, num_heads // num_kv_heads, q_LNH.device)
    out: Any = _BlockedAttention.apply(
        group_rows(q_LNH, num_kv_heads),
        pad_keys(k_CKH),
        pad_keys(v_CKH),
        positions_R.expand(num_kv_heads, -1),
        scale,
        window,
    )
    return ungroup_rows(out, length, num_heads)


def _attend_sequence_sdpa(
    q_LNH: Tensor, k_CKH: Tensor, v_CKH: Tensor, scale: float, window: int | None
) -> Float[Tensor, "L N H"]:
    """The same through torch's fused kernels."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q_LNH, k_CKH, v_CKH))
    length, num_keys = q_LNH.shape[0], k_CKH.shape[0]
    mask: Tensor | None = None
    if window is not None and num_keys > window:
        keys = torch.arange(num_keys, device=q.device)
        distance = keys[num_keys - length :, None] - keys[None, :]
        mask = (distance >= 0) & (distance < window)
    elif num_keys > length:
        mask = causal_lower_right(length, num_keys)
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
    )
    return out[0].transpose(0, 1)
