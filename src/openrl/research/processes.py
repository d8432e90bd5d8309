"""Starts and ends the commands of a study, so that none outlives it."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from openrl.research import keeper

_KEEPER_S = 2 * keeper.PATIENCE_S
PLAIN_NAMES = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "TZ", "TMPDIR", "LANG", "LC_ALL", "LC_CTYPE", "PYTHONPATH",
    "VIRTUAL_ENV", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # fmt: skip
"""Variables that no secret is in."""


@dataclass(slots=True)
class Kept:
    """A command that runs."""

    process: asyncio.subprocess.Process
    ended: "asyncio.Task[int]"
    _pipe: int  # its closing tells the keeper to end

    async def end(self) -> None:
        """SIGTERM to the command's group, then SIGKILL to all that it started."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()
            await asyncio.wait((self.ended,), timeout=_KEEPER_S)
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.ended

    def close(self) -> None:
        os.close(self._pipe)

    @property
    def is_waiting(self) -> bool:
        return False

    async def release(self) -> None:
        await self.end()
        self.close()


async def start(
    command: Sequence[str],
    directory: Path,
    environment: Mapping[str, str],
    stdin: int | IO[bytes] = asyncio.subprocess.DEVNULL,
    stdout: int | IO[bytes] = asyncio.subprocess.PIPE,
) -> Kept:
    """Start it under a keeper; what it writes as errors goes where its output goes."""
    reading, writing = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", keeper.__file__, str(reading), *command,
            cwd=directory, env=dict(environment), stdin=stdin, stdout=stdout, stderr=asyncio.subprocess.STDOUT,
            start_new_session=True, pass_fds=(reading,),
        )  # fmt: skip
    except BaseException:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    return Kept(process, asyncio.create_task(process.wait()), writing)


def chosen_environment(environment: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """The plain variables and those that are named."""
    return {name: environment[name] for name in (*PLAIN_NAMES, *names) if name in environment}
