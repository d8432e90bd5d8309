"""The tokens of one sequence as penalties see them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]


class PromptTokens:
    """The distinct tokens of a prompt; the samples of a request share them."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.ids: Int64Array = np.unique(np.asarray(tokens, np.int64))
        self.members = frozenset(tokens)


class TokenHistory:
    """Follows the tokens of one sequence: a function of them alone, brought up to date where it is needed."""

    def __init__(self, prompt: PromptTokens, num_prompt_tokens: int) -> None:
        self._prompt = prompt
        self._num_followed = num_prompt_tokens
        self._counts: dict[int, int] = {}  # of generated tokens
        self._new: list[int] = []  # generated tokens that the prompt does not hold, each once

    def follow(self, tokens: Sequence[int]) -> None:
        """Take in what has been generated since the last call; `tokens` begins with the prompt."""
        for token in tokens[self._num_followed :]:
            count = self._counts.get(token, 0)
            self._counts[token] = count + 1
            if not count and token not in self._prompt.members:
                self._new.append(token)
        self._num_followed = len(tokens)

    @property
    def held(self) -> Int64Array:
        """Every token of prompt and output, each once."""
        return np.concatenate([self._prompt.ids, np.asarray(self._new, np.int64)])

    @property
    def generated(self) -> tuple[Int64Array, Int64Array]:
        """Every token of the output, each once, and how often it occurs there."""
        num_tokens = len(self._counts)
        return (
            np.fromiter(self._counts.keys(), np.int64, num_tokens),
            np.fromiter(self._counts.values(), np.int64, num_tokens),
        )
