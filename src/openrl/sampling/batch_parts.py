"""Keeps what traced requests have in common with the batch; of requests that are not traced it keeps nothing.

A step costs one look at an empty table where nothing is traced, and one addition for each traced request otherwise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from openrl.sampling.base import BatchPart
from openrl.sampling.batcher import Slice

MAX_SHARED = 32
"""Other traced requests that one remembers: those that were there when it came, then the first to come after it."""


@dataclass(slots=True)
class _OpenPart:
    """A traced request from its first step on."""

    context: str
    began_at: float
    num_prefill_tokens: int = 0
    num_decode_steps: int = 0
    max_sequences: int = 0
    max_adapters: int = 0
    shared_with: list[str] = field(default_factory=list[str])


class BatchParts:
    """Requests by their arrival. `clock`: seconds; read only where something is traced."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._contexts: dict[int, str] = {}
        self._open: dict[int, _OpenPart] = {}
        self._decoding: list[_OpenPart] = []  # in the step under way

    def expect(self, arrival: int, context: str | None) -> None:
        """A request was accepted; `context`: its traceparent, None where it is not traced."""
        if context is not None:
            self._contexts[arrival] = context

    def enter(self, slices: Sequence[Slice]) -> None:
        """A step is about to compute these."""
        if not self._contexts:
            return
        prefill: dict[int, int] = {}
        decoding: set[int] = set()
        for each in slices:
            arrival = each.sequence.prompt.arrival
            if arrival not in self._contexts:
                continue
            if each.sequence.is_prefill:
                prefill[arrival] = prefill.get(arrival, 0) + each.length
            else:
                decoding.add(arrival)
        num_adapters = len({each.sequence.prompt.adapter for each in slices} - {None})
        for arrival in (*prefill, *(decoding - prefill.keys())):
            part = self._open.get(arrival) or self._admit(arrival)
            part.num_prefill_tokens += prefill.get(arrival, 0)
            part.max_sequences = max(part.max_sequences, len(slices))
            part.max_adapters = max(part.max_adapters, num_adapters)
        self._decoding = [self._open[arrival] for arrival in decoding]
        self.decode()

    def decode(self) -> None:
        """The sequences that decode in the step under way take one more token."""
        for part in self._decoding:
            part.num_decode_steps += 1

    def leave(self, arrival: int) -> BatchPart | None:
        """A request ended: what it had of the batch; None where it is not traced or was never computed."""
        self._contexts.pop(arrival, None)
        part = self._open.pop(arrival, None)
        if part is None:
            return None
        return BatchPart(
            seconds=self._clock() - part.began_at,
            num_prefill_tokens=part.num_prefill_tokens,
            num_decode_steps=part.num_decode_steps,
            max_sequences=part.max_sequences,
            max_adapters=part.max_adapters,
            shared_with=tuple(part.shared_with),
        )

    def _admit(self, arrival: int) -> _OpenPart:
        part = _OpenPart(self._contexts[arrival], self._clock())
        for other in self._open.values():
            if len(part.shared_with) < MAX_SHARED:
                part.shared_with.append(other.context)
            if len(other.shared_with) < MAX_SHARED:
                other.shared_with.append(part.context)
        self._open[arrival] = part
        return part
