"""Says when a generation ends: token ids, end-of-sequence, strings, length."""

from collections.abc import Sequence
from typing import Protocol

from openrl.protocol.results import StopReason
from openrl.sampling.base import SamplingOptions

CONTEXT_TOKENS = 8
"""Tokens decoded together with new ones: the text of a token may depend on those just before it."""

INCOMPLETE = "\ufffd"
"""What a tokenizer gives for bytes that are not a whole character yet."""


class Decoder(Protocol):
    """The part of a Hugging Face tokenizer that stop strings need."""

    def decode(self, token_ids: list[int], **options: bool) -> str:
        """The text of the tokens."""
        ...


class StopRule:
    """When one request's samples end. `None` from `reason` means: go on."""

    def __init__(
        self, options: SamplingOptions, max_new_tokens: int, eos_token_ids: frozenset[int], decoder: Decoder
    ) -> None:
        eos = eos_token_ids if options.stops_at_eos else frozenset[int]()
        self._token_ids = eos | frozenset(options.stop_token_ids)
        self._strings = tuple(string for string in options.stop_strings if string)
        self._max_new_tokens = max_new_tokens
        self._decoder = decoder

    def watch(self, prompt: Sequence[int]) -> "StopWatch":
        """The state of one sample."""
        return StopWatch(self, prompt)

    def reason(self, token: int, num_generated: int, watch: "StopWatch") -> StopReason | None:
        """Why the sample ends with this token, which stays in the output; a stop wins over the length."""
        if token in self._token_ids or (self._strings and watch.completes(token)):
            return "stop"
        return "length" if num_generated >= self._max_new_tokens else None

    def num_left(self, num_generated: int) -> int:
        """Tokens that the sample may still take."""
        return self._max_new_tokens - num_generated

    def text(self, token_ids: list[int]) -> str:
        """Special tokens are text too: clients stop at them by name."""
        return self._decoder.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def found(self, text: str) -> bool:
        """Whether a stop string occurs in the text."""
        return any(string in text for string in self._strings)

    @property
    def overlap(self) -> int:
        """Characters of old text that a stop string could begin in."""
        return max(len(string) for string in self._strings) - 1


class StopWatch:
    """Turns one sample's tokens into text as they come, and looks for stop strings in it."""

    def __init__(self, rule: StopRule, prompt: Sequence[int]) -> None:
        self._rule = rule
        self._window = list(prompt[-CONTEXT_TOKENS:])  # tokens whose text is known, then pending ones
        self._num_known = len(self._window)
        self._tail = ""  # the end of the generated text, where a stop string may have begun

    def completes(self, token: int) -> bool:
        """Take the next generated token; True if a stop string is complete with it."""
        self._window.append(token)
        before = self._rule.text(self._window[: self._num_known])
        after = self._rule.text(self._window)
        new = after[len(before) :]
        if self._rule.found(self._tail + new.rstrip(INCOMPLETE)):
            return True
        # A character of more than CONTEXT_TOKENS tokens does not exist: those bytes are simply not text.
        if new and (not new.endswith(INCOMPLETE) or len(self._window) - self._num_known >= CONTEXT_TOKENS):
            self._tail = (self._tail + new)[-self._rule.overlap :] if self._rule.overlap else ""
            self._window = self._window[-CONTEXT_TOKENS:]
            self._num_known = len(self._window)
        return False
