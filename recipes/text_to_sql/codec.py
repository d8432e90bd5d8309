"""Text to tokens and back, the same way in training and in sampling."""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from .questions import Question


@dataclass(frozen=True, slots=True)
class Codec:
    """The tokenizer, for questions and queries."""

    tokenizer: Tokenizer

    def prompt(self, question: Question) -> list[int]:
        """The prompt with the tokenizer's first token, if it has one."""
        return self.tokenizer.encode(question.prompt).ids

    def completion(self, question: Question) -> list[int]:
        """The gold answer; encoded apart from the prompt, because that is how the model will write it."""
        return self.tokenizer.encode(question.completion, add_special_tokens=False).ids

    def text(self, tokens: Sequence[int]) -> str:
        """What the model wrote."""
        return self.tokenizer.decode(list(tokens))
