"""Places of tokens against a walk over every position."""

import numpy as np
import pytest

from openrl.sampling.spans import Span, find_tokens


@pytest.mark.parametrize("block_tokens", [1, 4, 16])
def test_tokens_lie_where_the_block_tables_say(block_tokens: int):
    generator = np.random.default_rng(block_tokens)
    spans: list[Span] = []
    for start, length in ((0, 1), (0, 16), (15, 1), (16, 1), (3, 40), (17, 15), (63, 1)):
        table = tuple(generator.permutation(1000)[: -(-(start + length) // block_tokens) + 2].tolist())
        spans.append(Span(sum(each.length for each in spans), start, length, table))
    starts, lengths = np.array([span.start for span in spans]), np.array([span.length for span in spans])
    blocks, offsets = find_tokens(spans, starts, lengths, block_tokens)
    expected = [
        (span.blocks[position // block_tokens], position % block_tokens)
        for span in spans
        for position in range(span.start, span.start + span.length)
    ]
    assert list(zip(blocks.tolist(), offsets.tolist(), strict=True)) == expected
