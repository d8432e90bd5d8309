"""Which rows of a step belong to which sequence, and where tokens lie in the cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Span:
    """Rows of one sequence in the packed batch and where its tokens live."""

    row: int  # first row
    start: int  # position of the first row
    length: int
    blocks: tuple[int, ...]  # block table; covers position start + length - 1


def find_tokens(
    spans: Sequence[Span], starts: NDArray[np.int64], lengths: NDArray[np.int64], block_tokens: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Block and offset of the tokens [starts[s], starts[s] + lengths[s]) of every span's sequence, in order.

    Every length is at least 1.
    """
    first_pages = starts // block_tokens
    stop_pages = (starts + lengths - 1) // block_tokens + 1
    tables = zip(spans, first_pages.tolist(), stop_pages.tolist(), strict=True)
    pages = np.fromiter(chain.from_iterable(span.blocks[first:stop] for span, first, stop in tables), np.int64)
    # A token's page is `page_shift` after its page number, its position `position_shift` after its place.
    num_pages = stop_pages - first_pages
    page_shift = np.cumsum(num_pages) - num_pages - first_pages
    position_shift = starts - (np.cumsum(lengths) - lengths)
    positions = np.arange(lengths.sum()) + np.repeat(position_shift, lengths)
    return pages[positions // block_tokens + np.repeat(page_shift, lengths)], positions % block_tokens
