"""Runs a process's parts until a signal comes, then lets them drain."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence

from openrl.errors import OpenRLError

Action = Callable[[], Awaitable[None]]


async def run_until_signalled(parts: Sequence[Action], drain: Action) -> None:
    """Run all parts until SIGTERM or SIGINT, then `drain`, then end them; a second signal ends the draining.

    Raises the OpenRLError of a part that cannot go on.
    """
    stop = _stop_on_signals()
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_run(part)) for part in parts]
            await stop.wait()
            stop.clear()
            await _unless(stop, drain)
            for task in tasks:
                task.cancel()
    except* OpenRLError as group:
        raise _first(group) from None


async def _run(part: Action) -> None:
    await part()


def _stop_on_signals() -> asyncio.Event:
    """Set by SIGTERM and Ctrl-C."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _unless(stop: asyncio.Event, action: Action) -> None:
    """Do the action, or give it up when `stop` is set."""
    tasks = [asyncio.ensure_future(action()), asyncio.ensure_future(stop.wait())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def _first(group: BaseExceptionGroup[OpenRLError]) -> OpenRLError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, OpenRLError), "the group was split by this type"
    return error
