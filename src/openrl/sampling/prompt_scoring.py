"""Finds the rows of one step that score prompts and hands their logits to the scorers, chunk by chunk.

Legend: T packed rows, D model dim. Rows of many prompts share a chunk.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from openrl.sampling.batcher import Slice
from openrl.sampling.model_runner import ModelRunner, RowRange
from openrl.sampling.prompt_logprobs import PromptScorer


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """Rows whose logits score one prompt."""

    scorer: PromptScorer
    position: int  # in the prompt, of the first row
    rows: RowRange


def score_prompts(
    runner: ModelRunner,
    hidden_TD: Float[Tensor, "T D"],
    slices: Sequence[Slice],
    rows: Sequence[RowRange],
    scorers: Sequence[PromptScorer | None],
) -> None:
    """Score what the slices have computed of their prompts; `rows[i]` and `scorers[i]` belong to `slices[i]`."""
    pieces = [
        piece
        for step, part, scorer in zip(slices, rows, scorers, strict=True)
        if scorer is not None and (piece := _scored_rows(step, part, scorer)) is not None
    ]
    for chunk in cut_chunks(pieces, runner.chunk_rows):
        logits_CV = runner.logits(hidden_TD, [piece.rows for piece in chunk])
        start = 0
        for piece in chunk:
            piece.scorer.add(piece.position, logits_CV[start : start + piece.rows.length])
            start += piece.rows.length


def cut_chunks(pieces: Sequence[ScoredRows], chunk_rows: int) -> Iterator[list[ScoredRows]]:
    """The pieces in order, cut so that every chunk has at most `chunk_rows` rows."""
    chunk: list[ScoredRows] = []
    room = chunk_rows
    for piece in pieces:
        done = 0
        while done < piece.rows.length:
            length = min(piece.rows.length - done, room)
            part = RowRange(piece.rows.start + done, length, piece.rows.slot)
            chunk.append(ScoredRows(piece.scorer, piece.position + done, part))
            done, room = done + length, room - length
            if not room:
                yield chunk
                chunk, room = [], chunk_rows
    if chunk:
        yield chunk


def _scored_rows(step: Slice, part: RowRange, scorer: PromptScorer) -> ScoredRows | None:
    """The rows of the slice that the prompt's scores still need; moves the prompt's `next_scored` past them."""
    prompt = step.sequence.prompt
    if prompt.next_scored is None:
        return None
    last = len(prompt.tokens) - 1  # nothing follows the last token: its logits score nothing
    first, stop = max(prompt.next_scored, step.start), min(step.start + step.length, last)
    prompt.next_scored = None if stop >= last else max(stop, prompt.next_scored)
    if first >= stop:
        return None
    return ScoredRows(scorer, first, RowRange(part.start + first - step.start, stop - first, part.slot))
