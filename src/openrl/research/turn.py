"""One run of an agent's command, within its bounds."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from openrl.research.processes import Kept, start

_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class TurnLimits:
    """What a turn may take."""

    timeout_s: float
    max_output_bytes: int


async def run_turn(
    command: Sequence[str],
    directory: Path,
    environment: Mapping[str, str],
    prompt: Path,
    output: Path,
    limits: TurnLimits,
) -> str:
    """Prompt on standard input, what is printed into `output`; why the turn counts for nothing, or "".

    When it returns or is cancelled, all that the command started is over.
    """
    with prompt.open("rb") as given:
        kept = await start(command, directory, environment, stdin=given)
    try:
        return await _follow(kept, output, limits)
    finally:
        unread = asyncio.create_task(_discard(kept))  # a full pipe would keep the end of the process from us
        await kept.end()
        await unread
        kept.close()


async def _discard(kept: Kept) -> None:
    assert kept.process.stdout is not None
    while await kept.process.stdout.read(_CHUNK_BYTES):
        pass


async def _follow(kept: Kept, output: Path, limits: TurnLimits) -> str:
    try:
        async with asyncio.timeout(limits.timeout_s):
            if not await _copy(kept, output, limits.max_output_bytes):
                return f"the agent printed more than max_output_bytes = {limits.max_output_bytes}"
            status = await kept.ended
    except TimeoutError:
        return f"the agent was not done after turn_timeout_s = {limits.timeout_s:g} s"
    return f"the agent ended with status {status}: {last_lines(output, 1) or 'no output'}" if status else ""


async def _copy(kept: Kept, output: Path, max_bytes: int) -> bool:
    """Until the command closes its output; whether it kept within the bound."""
    assert kept.process.stdout is not None
    left = max_bytes
    with output.open("wb") as file:
        while chunk := await kept.process.stdout.read(_CHUNK_BYTES):
            file.write(chunk[:left])
            left -= len(chunk)
            if left < 0:
                return False
    return True


def last_lines(path: Path, num_lines: int, max_characters: int = 2000) -> str:
    """The end of a text, or nothing."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 4 * max_characters))
        text = file.read().decode(errors="replace").replace("\0", "").strip()
        return "\n".join(text.splitlines()[-num_lines:])[-max_characters:].strip()
    return ""
