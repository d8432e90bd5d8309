"""What a container runs, as it sees the world itself, and what is started for it on this machine."""

import asyncio
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from openrl.cluster.names import with_addresses, with_paths
from openrl.cluster.volumes import Mount


@dataclass(frozen=True, slots=True)
class Program:
    """A container's process in its own view: paths are those of its mounts, names those of the cluster."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    working_dir: str = ""
    mounts: tuple[Mount, ...] = ()
    user: int | None = None
    group: int | None = None
    volumes_group: int | None = None
    may_be_root: bool = True
    stop_signal: signal.Signals = signal.SIGTERM
    is_root_read_only: bool = False


@dataclass(frozen=True, slots=True)
class Spawn:
    """A process of this machine."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str | None = None
    user: int | None = None
    group: int | None = None

    async def start(self, log: IO[bytes] | int) -> asyncio.subprocess.Process:
        """In a process group of its own; raises OSError if there is no such program."""
        as_other = {} if self.user is None else {"user": self.user, "group": self.group, "extra_groups": []}
        return await asyncio.create_subprocess_exec(
            *self.argv,
            env=dict(self.env),
            cwd=self.cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            **as_other,  # pyright: ignore[reportArgumentType]
        )


@dataclass(frozen=True, slots=True)
class Rewriting:
    """Texts of a pod that has no view of its own: names and mounted paths become those of this machine."""

    addresses: Mapping[str, str]
    paths: Mapping[str, str]

    def __call__(self, text: str) -> str:
        """The text as it must be here."""
        return with_paths(with_addresses(text, self.addresses), self.paths)


def plain_spawn(program: Program, rewrite: Rewriting) -> Spawn:
    """For a pod without namespaces: rewritten, and as whoever runs this, unless that is root and must not be."""
    mounted = {mount.target: str(mount.source) for mount in program.mounts}
    own = replace(rewrite, paths={**rewrite.paths, **mounted})
    other_user = program.user if os.geteuid() == 0 and not program.may_be_root else None
    return Spawn(
        # The program itself is one of this machine.
        argv=(program.argv[0], *(own(word) for word in program.argv[1:])),
        env={name: value if name == "PATH" else own(value) for name, value in program.env.items()},
        cwd=own(program.working_dir) if program.working_dir else None,
        user=other_user,
        group=None if other_user is None else program.group,
    )


def outer_directories(paths: tuple[Path, ...]) -> dict[Path, list[Path]]:
    """By outermost directory that others may not enter: those of `paths` inside it."""
    closed: dict[Path, list[Path]] = {}
    for path in paths:
        for outer in reversed(path.parents):
            if not outer.stat().st_mode & 0o001:
                inside = closed.setdefault(outer, [])
                if path not in inside:
                    inside.append(path)
                break
    return closed
