"""The flash operators on CPU, as plain as can be: same signatures, same unwritten rows (here NaN)."""

from itertools import pairwise

import torch
from torch import Tensor

NAN = float("nan")


def _scores(
    q: Tensor, k: Tensor, scale: float, is_causal: bool, left: int | None, right: int | None
) -> tuple[Tensor, Tensor]:
    per_group = q.shape[1] // k.shape[1]
    k = k.repeat_interleave(per_group, 1)
    scores = torch.einsum("lnh,cnh->nlc", q, k) * scale
    places = torch.arange(q.shape[0])[:, None] + k.shape[0] - q.shape[0]
    keys = torch.arange(k.shape[0])[None]
    hidden = torch.zeros(q.shape[0], k.shape[0], dtype=torch.bool)
    if is_causal or (right is not None and right >= 0):
        hidden |= keys > places
    if left is not None and left >= 0:
        hidden |= keys < places - left
    return scores.masked_fill(hidden, float("-inf")), k


def _slices(cu: Tensor) -> list[slice]:
    return [slice(a, b) for a, b in pairwise(cu.tolist())]


def _check(cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, q: Tensor, k: Tensor) -> None:
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert cu_q.is_contiguous()
    assert cu_k.is_contiguous()
    assert cu_q.shape == cu_k.shape
    assert int(cu_q.diff().max()) <= max_q >= 2
    assert int(cu_k.diff().max()) <= max_k
    assert int(cu_q[-1]) <= q.shape[0]
    assert int(cu_k[-1]) <= k.shape[0]


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    dropout: float,
    is_causal: bool,
    debug: bool,
    *,
    scale: float = 1.0,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    **unused: None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check(cu_q, cu_k, max_q, max_k, q, k)
    out = torch.full_like(q, NAN)
    lse = torch.full((q.shape[1], q.shape[0]), NAN, dtype=q.dtype)
    for rows, keys in zip(_slices(cu_q), _slices(cu_k), strict=True):
        if keys.start == keys.stop:
            out[rows], lse[:, rows] = 0.0, float("inf")
            continue
        scores, _ = _scores(q[rows], k[keys], scale, is_causal, window_size_left, window_size_right)
        values = v[keys].repeat_interleave(q.shape[1] // k.shape[1], 1)
        lse[:, rows] = scores.logsumexp(-1)
        out[rows] = torch.einsum("nlc,cnh->lnh", scores.softmax(-1), values)
    empty = torch.empty(0)
    return out, lse, empty, empty.clone(), empty.clone()


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    dropout: float,
    is_causal: bool,
    rng_state: Tensor,
    unused: Tensor,
    *,
    scale: float = 1.0,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(cu_q, cu_k, max_q, max_k, q, k)
    dq, dk, dv = (torch.full_like(x, NAN) for x in (q, k, v))
    per_group = q.shape[1] // k.shape[1]
    for rows, keys in zip(_slices(cu_q), _slices(cu_k), strict=True):
        if keys.start == keys.stop:
            dq[rows] = 0.0
            continue
        scores, k_all = _scores(q[rows], k[keys], scale, is_causal, window_size_left, window_size_right)
        p = torch.exp(scores - lse[:, rows, None])
        delta = (grad[rows] * out[rows]).sum(-1).t()[..., None]
        values = v[keys].repeat_interleave(per_group, 1)
        ds = p * (torch.einsum("lnh,cnh->nlc", grad[rows], values) - delta) * scale
        dq[rows] = torch.einsum("nlc,cnh->lnh", ds, k_all)
        dk[keys] = torch.einsum("nlc,lnh->cnh", ds, q[rows]).unflatten(1, (-1, per_group)).sum(2)
        dv[keys] = torch.einsum("nlc,lnh->cnh", p, grad[rows]).unflatten(1, (-1, per_group)).sum(2)
    return dq, dk, dv
