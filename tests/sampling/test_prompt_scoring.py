"""Chunks of scored rows are full, in order and cover every row once."""

from openrl.sampling.model_runner import RowRange
from openrl.sampling.prompt_logprobs import PromptScorer
from openrl.sampling.prompt_scoring import ScoredRows, cut_chunks
from tests.sampling.jobs import job


def test_prompts_share_chunks_and_long_ones_span_several():
    scorer = PromptScorer(job("r", [1, 2]), seed=0)
    pieces = [
        ScoredRows(scorer, 0, RowRange(0, 3, -1)),
        ScoredRows(scorer, 5, RowRange(10, 12, 0)),
        ScoredRows(scorer, 0, RowRange(22, 1, 1)),
    ]
    chunks = list(cut_chunks(pieces, 8))
    assert [[(p.position, p.rows.start, p.rows.length, p.rows.slot) for p in chunk] for chunk in chunks] == [
        [(0, 0, 3, -1), (5, 10, 5, 0)],
        [(10, 15, 7, 0), (0, 22, 1, 1)],
    ]
