"""Attention of a step's prompt slices in one variable-length call (CUDA).

Legend: T packed rows, C keys of all slices, N query heads, K key-value heads, H head dim, S spans.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from openrl.model.flash_attention import FlashCall, flash_forward, make_call, to_device
from openrl.sampling.kv_cache import KVCache
from openrl.sampling.spans import Span, find_tokens


class FlashPrefill:
    """Rows of spans longer than 1. Single rows get what means nothing: they are someone else's to overwrite.

    Where every slice starts its sequence, the keys are those of this pass, in place. Else all keys are gathered
    from the pages into one buffer: the copies cost less than a second call for the slices that need none.
    """

    def __init__(self, cache: KVCache, spans: Sequence[Span]) -> None:
        self._cache = cache
        self._spans = spans
        self._num_rows = sum(span.length for span in spans)
        self._in_place = all(span.start == 0 for span in spans if span.length > 1)
        self._calls: dict[int | None, tuple[FlashCall, Int64[Tensor, " CK"] | None]] = {}  # by window

    def attend(
        self,
        layer: int,
        q_TNH: Float[Tensor, "T N H"],
        k_TKH: Float[Tensor, "T K H"],
        v_TKH: Float[Tensor, "T K H"],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "T N H"]:
        """Output of all rows, zeros for padding; the pass's keys and values are in the cache already."""
        if window not in self._calls:
            self._calls[window] = self._make_call(window)
        call, places_CK = self._calls[window]
        if places_CK is not None:
            k_TKH, v_TKH = self._cache.gather(layer, places_CK)
        out_TNH, _ = flash_forward(q_TNH, k_TKH, v_TKH, call, scale, window)
        out_TNH[self._num_rows :].zero_()
        return out_TNH

    def _make_call(self, window: int | None) -> tuple[FlashCall, Tensor | None]:
        num_rows = [span.length for span in self._spans]
        device = self._cache.device
        if self._in_place:
            return make_call(num_rows, num_rows, device), None
        long = [span for span in self._spans if span.length > 1]
        starts = np.array([span.start for span in long])
        stops = starts + np.array([span.length for span in long])
        starts = np.zeros_like(starts) if window is None else np.maximum(starts - window + 1, 0)
        lengths = stops - starts
        blocks, offsets = find_tokens(long, starts, lengths, self._cache.block_tokens)
        waiting = iter(lengths.tolist())
        num_keys = [next(waiting) if span.length > 1 else 0 for span in self._spans]
        places_CK = self._cache.places_of(to_device(blocks, device), to_device(offsets, device))
        return make_call(num_rows, num_keys, device), places_CK
