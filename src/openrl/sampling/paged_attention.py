"""Attention of the rows of one step over the paged cache.

Legend: T packed rows, N query heads, K key-value heads, H head dim.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from openrl.model.flash_attention import takes_flash, to_device
from openrl.sampling.flash_prefill import FlashPrefill
from openrl.sampling.grouped_attention import GroupedAttention
from openrl.sampling.kv_cache import KVCache
from openrl.sampling.spans import Span, find_tokens


class PagedAttention:
    """Writes a layer's new keys and values to the cache, then lets every row look at its own sequence.

    Single rows attend in groups; so do longer spans, but where the flash kernels compute them. The spans'
    rows follow each other from row 0.
    """

    def __init__(self, cache: KVCache, spans: Sequence[Span], num_heads: int) -> None:
        self._cache = cache
        self._num_rows = sum(span.length for span in spans)
        self._places = self._token_places(spans)
        self._prefill = FlashPrefill(cache, spans) if any(span.length > 1 for span in spans) else None
        self._single = GroupedAttention(cache, [span for span in spans if span.length == 1], num_heads)
        self._all = GroupedAttention(cache, spans, num_heads)

    def attend(
        self,
        layer: int,
        q_TNH: Float[Tensor, "T N H"],
        k_TKH: Float[Tensor, "T K H"],
        v_TKH: Float[Tensor, "T K H"],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "T N H"]:
        """See model.batch.Attention."""
        self._cache.write(layer, self._places, k_TKH[: self._num_rows], v_TKH[: self._num_rows])
        if self._prefill is not None and takes_flash(q_TNH):
            out_TNH = self._prefill.attend(layer, q_TNH, k_TKH, v_TKH, scale, window)
            self._single.attend_into(out_TNH, layer, q_TNH, scale, window)
        else:
            out_TNH = torch.zeros_like(q_TNH)
            self._all.attend_into(out_TNH, layer, q_TNH, scale, window)
        return out_TNH

    def _token_places(self, spans: Sequence[Span]) -> Tensor:
        starts = np.array([span.start for span in spans], np.int64)
        lengths = np.array([span.length for span in spans], np.int64)
        blocks, offsets = find_tokens(spans, starts, lengths, self._cache.block_tokens)
        device = self._cache.device
        return self._cache.places_of(to_device(blocks, device), to_device(offsets, device))
