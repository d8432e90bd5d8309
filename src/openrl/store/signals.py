"""Hands signals to the coroutines of this process that listen. Lives on the event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable

from openrl.store.cluster import Signal


class SignalHub:
    """Who listens for signals."""

    def __init__(self) -> None:
        self._listeners: list[asyncio.Queue[Signal | None]] = []
        self._callbacks: list[Callable[[Signal], None]] = []
        self._is_closed = False

    def publish(self, signal: Signal) -> None:
        """Hand it to everybody who listens."""
        for callback in self._callbacks:
            callback(signal)
        for listener in self._listeners:
            listener.put_nowait(signal)

    def call(self, callback: Callable[[Signal], None]) -> None:
        """Hand it every signal from here on, as soon as it comes."""
        self._callbacks.append(callback)

    async def listen(self) -> AsyncIterator[Signal]:
        """Signals from here on, until the hub closes."""
        signals: asyncio.Queue[Signal | None] = asyncio.Queue()
        if self._is_closed:
            signals.put_nowait(None)
        self._listeners.append(signals)
        try:
            while (signal := await signals.get()) is not None:
                yield signal
        finally:
            self._listeners.remove(signals)

    def close(self) -> None:
        """Send everybody home."""
        self._is_closed = True
        for listener in self._listeners:
            listener.put_nowait(None)
