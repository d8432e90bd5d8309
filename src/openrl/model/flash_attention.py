"""Attention of all sequences of a packed batch in one call of torch's variable-length flash kernels (CUDA).

Legend: T packed rows, C keys, N query heads, K key-value heads, H head dim, S sequences of one call.

Facts of the operators that this file relies on, from torch 2.11 to 2.13:
- They take fewer key-value heads than query heads; causal masks and windows are aligned at the last key.
- Log-sum-exps are packed, [N, T]. Rows outside of every sequence are left unwritten, in gradients too.
- A row of a sequence without keys gives 0 and a gradient of 0; its log-sum-exp is +inf.
- With rows of length 1 only and no window they take another path, which asks for as many rows as sequences:
  `max_rows` is at least 2, so that it is never taken.
- The gradient of queries is summed with atomics unless torch's deterministic algorithms are on.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import Function, FunctionCtx

from openrl.model.batch import Segment

MAX_HEAD_DIM = 256


def takes_flash(q_TNH: Float[Tensor, "T N H"]) -> bool:
    """Whether the flash kernels compute this type and head dim on this device."""
    half = q_TNH.dtype in (torch.bfloat16, torch.float16)
    return q_TNH.is_cuda and half and q_TNH.shape[-1] % 8 == 0 and q_TNH.shape[-1] <= MAX_HEAD_DIM


@dataclass(frozen=True, slots=True)
class FlashCall:
    """Which rows see which keys in one call: sequence s has rows and keys [bounds[s], bounds[s + 1])."""

    row_bounds: Int32[Tensor, " S1"]
    key_bounds: Int32[Tensor, " S1"]
    max_rows: int
    max_keys: int
    is_causal: bool = True
    keys_C: Int64[Tensor, " C"] | None = None  # rows of the batch that are its keys; None: all, in place


def make_call(num_rows: Sequence[int], num_keys: Sequence[int], device: torch.device) -> FlashCall:
    """A causal call over sequences of these lengths that lie one after the other."""
    return FlashCall(
        to_device(_bounds(num_rows), device),
        to_device(_bounds(num_keys), device),
        max_rows=max(2, *num_rows),
        max_keys=max(num_keys),
    )


def to_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """A copy that does not wait for what the device still computes."""
    return torch.from_numpy(values).to(device, non_blocking=True)


def _bounds(lengths: Sequence[int]) -> NDArray[np.int32]:
    return np.cumsum([0, *lengths], dtype=np.int32)


def flash_forward(
    q_TNH: Float[Tensor, "T N H"],
    k_CKH: Float[Tensor, "C K H"],
    v_CKH: Float[Tensor, "C K H"],
    call: FlashCall,
    scale: float,
    window: int | None,
) -> tuple[Float[Tensor, "T N H"], Float[Tensor, "N T"]]:
    """Attention and the log-sum-exp of the scores; rows after the last sequence are not written."""
    left, right = _window_sizes(call, window)
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q_TNH,
        k_CKH,
        v_CKH,
        call.row_bounds,
        call.key_bounds,
        call.max_rows,
        call.max_keys,
        0.0,
        call.is_causal,
        False,
        scale=scale,
        window_size_left=left,
        window_size_right=right,
    )
    assert lse.shape == (q_TNH.shape[1], q_TNH.shape[0]), "log-sum-exps are packed"
    return out, lse


def _window_sizes(call: FlashCall, window: int | None) -> tuple[int, int]:
    """Tokens seen before and after a row, without itself; -1: all."""
    left = -1 if window is None or window >= call.max_keys else window - 1
    return left, 0 if call.is_causal else -1


def _flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, call: FlashCall, scale: float, window: Any
) -> tuple[Tensor, Tensor, Tensor]:
    left, right = _window_sizes(call, window)
    unused = torch.empty(0, device=q.device)
    return torch.ops.aten._flash_attention_backward(
        grad,
        q,
        k,
        v,
        out,
        lse,
        call.row_bounds,
        call.key_bounds,
        call.max_rows,
        call.max_keys,
        0.0,
        call.is_causal,
        unused,
        unused,
        scale=scale,
        window_size_left=left,
        window_size_right=right,
    )


@contextmanager
def _deterministic(enabled: bool) -> Generator[None]:
    """Torch's deterministic algorithms; the public switch would also import the compiler."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if enabled:
        torch._C._set_deterministic_algorithms(True, warn_only=False)
    try:
        yield
    finally:
        torch._C._set_deterministic_algorithms(before[0], warn_only=before[1])


@dataclass(frozen=True, slots=True)
class _Parts:
    """What is computed for one kind of layer: rows over their own keys, and rows over their parents' keys."""

    num_rows: int  # rows after these are padding
    own: FlashCall
    prefix: FlashCall | None
    no_prefix_T: Tensor | None  # rows that have no parent


class _FlashAttention(Function):
    """Both parts merged by log-sum-exp. The backward pass of each takes the merged output and log-sum-exp.

    With them the probabilities and the row sums of grad * out that a part recomputes are those of the whole
    row, so the parts' gradients add up exactly. Gathered keys and values are not kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, parts: _Parts, scale: float, window: int | None, deterministic: bool
    ) -> Tensor:
        out, lse = flash_forward(q, *_keys_of(parts.own, k, v), parts.own, scale, window)
        if parts.prefix is not None:
            assert parts.no_prefix_T is not None
            out_prefix, lse_prefix = flash_forward(q, *_keys_of(parts.prefix, k, v), parts.prefix, scale, None)
            lse_prefix = lse_prefix.masked_fill(parts.no_prefix_T, float("-inf"))
            share_NT = torch.sigmoid(lse_prefix - lse)
            out.lerp_(out_prefix, share_NT.t()[..., None].to(out.dtype))
            lse = torch.logaddexp(lse, lse_prefix)
        out[parts.num_rows :].zero_()
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.parts, ctx.scale, ctx.window, ctx.deterministic = parts, scale, window, deterministic
        return out

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Any) -> Any:
        saved: Any = ctx
        q, k, v, out, lse = saved.saved_tensors
        parts: _Parts = saved.parts
        with _deterministic(saved.deterministic):
            gradients = _backward_part(grads[0], q, k, v, out, lse, parts.own, saved.scale, saved.window)
            for gradient in gradients:
                gradient[parts.num_rows :].zero_()
            if parts.prefix is not None:
                others = _backward_part(grads[0], q, k, v, out, lse, parts.prefix, saved.scale, None)
                for gradient, other in zip(gradients, others, strict=True):
                    gradient[: parts.num_rows] += other[: parts.num_rows]
        return *gradients, None, None, None, None


def _keys_of(call: FlashCall, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    if call.keys_C is None:
        return k, v
    return k.index_select(0, call.keys_C), v.index_select(0, call.keys_C)


def _backward_part(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, call: FlashCall, scale: float, window: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one part by the batch's rows."""
    dq, dk, dv = _flash_backward(grad, q, *_keys_of(call, k, v), out, lse, call, scale, window)
    if call.keys_C is None:
        return dq, dk, dv
    return dq, k.new_zeros(k.shape).index_add_(0, call.keys_C, dk), v.new_zeros(v.shape).index_add_(0, call.keys_C, dv)


class FlashAttention:
    """Causal attention inside each sequence of a packed batch; what the kernels need is made once a batch."""

    def __init__(
        self, segments: tuple[Segment, ...], num_rows: int, device: torch.device, deterministic: bool = False
    ) -> None:
        """`num_rows`: with padding."""
        self._segments = segments
        self._total = num_rows
        self._device = device
        self._deterministic = deterministic
        self._num_rows = sum(segment.length for segment in segments)
        lengths = [segment.length for segment in segments]
        own = make_call(lengths, lengths, device)
        self._parts = _Parts(self._num_rows, own, *self._prefix_call())
        self._windowed: dict[int, _Parts] = {}

    def attend(
        self,
        q_TNH: Float[Tensor, "T N H"],
        k_TKH: Float[Tensor, "T K H"],
        v_TKH: Float[Tensor, "T K H"],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "T N H"]:
        """See model.batch.Attention; differentiable in q, k and v."""
        parts = self._parts
        if window is not None and parts.prefix is not None and window < self._longest:
            parts = self._windowed_parts(window)
        out: Any = _FlashAttention.apply(q_TNH, k_TKH, v_TKH, parts, scale, window, self._deterministic)
        return out

    @property
    def _longest(self) -> int:
        """Tokens of the longest sequence, its prefix included."""
        return max(each.length + self._prefix_length(each) for each in self._segments)

    def _prefix_length(self, segment: Segment) -> int:
        return 0 if segment.parent < 0 else self._segments[segment.parent].length

    def _prefix_call(self) -> tuple[FlashCall | None, Tensor | None]:
        """All children of a parent as one sequence over its rows; rows without a parent have no keys."""
        if all(segment.parent < 0 for segment in self._segments):
            return None, None
        runs: list[tuple[int, int]] = []  # (parent, rows)
        for segment in self._segments:
            if runs and runs[-1][0] == segment.parent:
                runs[-1] = (segment.parent, runs[-1][1] + segment.length)
            else:
                runs.append((segment.parent, segment.length))
        parents = [self._segments[parent] for parent, _ in runs if parent >= 0]
        keys = np.concatenate([np.arange(each.start, each.start + each.length) for each in parents])
        num_keys = [self._segments[parent].length if parent >= 0 else 0 for parent, _ in runs]
        call = make_call([length for _, length in runs], num_keys, self._device)
        call = replace(call, is_causal=False, keys_C=to_device(keys, self._device))
        no_prefix = np.ones(self._total, np.bool_)
        no_prefix[: self._num_rows] = np.repeat([parent < 0 for parent, _ in runs], [length for _, length in runs])
        return call, to_device(no_prefix, self._device)

    def _windowed_parts(self, window: int) -> _Parts:
        """One part: copies of the prefix's last keys before each child's own, as many as its first row sees."""
        if window not in self._windowed:
            rows: list[NDArray[np.int64]] = []
            for segment in self._segments:
                if segment.parent >= 0:
                    parent = self._segments[segment.parent]
                    stop = parent.start + parent.length
                    rows.append(np.arange(max(parent.start, stop - window + 1), stop))
                rows.append(np.arange(segment.start, segment.start + segment.length))
            num_keys = [segment.length + min(self._prefix_length(segment), window - 1) for segment in self._segments]
            call = make_call([segment.length for segment in self._segments], num_keys, self._device)
            call = replace(call, keys_C=to_device(np.concatenate(rows), self._device))
            self._windowed[window] = _Parts(self._num_rows, call, None, None)
        return self._windowed[window]
