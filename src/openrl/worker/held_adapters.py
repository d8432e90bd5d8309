"""Adapters of the latest saves, so that sampling from them need not wait for files."""

from collections import OrderedDict

from openrl.model.adapter import AdapterWeights


class HeldAdapters:
    """By object key, at most `max_bytes`; the oldest go first. Used from the compute thread only.

    The files are the truth: whoever finds nothing here reads them.
    """

    def __init__(self, max_bytes: int = 0) -> None:
        self._max_bytes = max_bytes
        self._adapters: OrderedDict[str, AdapterWeights] = OrderedDict()
        self._num_bytes = 0

    def put(self, key: str, adapter: AdapterWeights) -> None:
        """Hold one; its tensors must not change any more."""
        self._drop(key)
        self._adapters[key] = adapter
        self._num_bytes += _size(adapter)
        while self._num_bytes > self._max_bytes:
            self._drop(next(iter(self._adapters)))

    def take(self, key: str) -> AdapterWeights | None:
        """The adapter, for whoever has a place for it: it is held no longer."""
        adapter = self._adapters.get(key)
        self._drop(key)
        return adapter

    def clear(self) -> None:
        """Give the memory back."""
        self._adapters.clear()
        self._num_bytes = 0

    def _drop(self, key: str) -> None:
        adapter = self._adapters.pop(key, None)
        if adapter is not None:
            self._num_bytes -= _size(adapter)


def _size(adapter: AdapterWeights) -> int:
    tensors = [tensor for pair in adapter.pairs.values() for tensor in (pair.a_RD, pair.b_OR)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
