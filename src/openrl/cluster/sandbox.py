"""Starts a program in a network namespace and file system of its own: a shell script that ends as the program."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from openrl.cluster.programs import Program, Spawn, outer_directories

_SCRIPT = """
set -eu
mount -t tmpfs -o mode=0755 none {root}
mkdir -p {root}/stubs {root}/upper {root}/work {root}/merged
{stubs}
mount -t overlay overlay -o {layers} {root}/merged
cd {root}/merged
{mounts}
exec chroot {identity} . env --chdir={directory} {argv}
"""


def sandboxed(program: Program, namespace: str, root: Path, hosts: Path, mount_points: Sequence[Path]) -> Spawn:
    """The machine's files are seen read-only (or with changes that are lost), with the program's mounts over them.

    `root`: an empty directory. `hosts` becomes /etc/hosts. `mount_points`: of the machine, see `mount_points()`.
    """
    stubs, mounts = _mount_lines(program, root, hosts, mount_points)
    layers = f"lowerdir={root}/stubs:/"
    if not program.is_root_read_only:
        layers = f"{layers},upperdir={root}/upper,workdir={root}/work"
    script = _SCRIPT.format(
        root=shlex.quote(str(root)),
        stubs="\n".join(stubs),
        layers=shlex.quote(layers),
        mounts="\n".join(mounts),
        identity=_identity(program),
        directory=shlex.quote(program.working_dir or "/"),
        argv=shlex.join(program.argv),
    )
    enter = ("nsenter", f"--net=/run/netns/{namespace}", "unshare", "--mount", "--propagation", "private")
    return Spawn((*enter, "sh", "-c", script), program.env)


def mount_points(mountinfo: str) -> list[Path]:
    """Where other file systems begin that are not inside another one: an overlay of / does not show them."""
    points = sorted({line.split()[4].replace("\\040", " ") for line in mountinfo.splitlines()} - {"/"})
    outer: list[Path] = []
    for point in map(Path, points):
        if not any(point.is_relative_to(other) for other in outer):
            outer.append(point)
    return outer


def _mount_lines(
    program: Program, root: Path, hosts: Path, mount_points: Sequence[Path]
) -> tuple[list[str], list[str]]:
    """Lines that make places for mounts, and those that mount."""
    stubs: list[str] = []
    # What others have mounted somewhere may be gone by then; without these three no program starts.
    needed = {Path("/dev"), Path("/proc"), Path("/sys")}
    mounts = [
        f"mount --rbind {_quoted(point)} {_inside(point)}{'' if point in needed else ' 2>/dev/null || :'}"
        for point in mount_points
    ]
    # An installation below a directory that others may not enter (/root): that directory shows it and nothing else.
    installation = (Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[2])
    for closed, shown in outer_directories(installation).items():
        mounts.append(f"mount -t tmpfs -o mode=0755 none {_inside(closed)}")
        mounts += [_shown(each) for each in shown]
    mounts.append(f"mount --bind {_quoted(hosts)} etc/hosts")
    mounts += _user_lines(program, root)
    for mount in program.mounts:
        place = f"{shlex.quote(str(root))}/stubs/{_inside(Path(mount.target))}"
        if mount.source.is_dir():
            stubs.append(f"mkdir -p {place}")
        else:
            stubs.append(f"mkdir -p {_quoted(root / 'stubs' / Path(mount.target).parent.relative_to('/'))}; : >{place}")
        target = Path(mount.target)
        mounts.append(f"mount --bind {_quoted(mount.source)} {_inside(target)}")
        # A checkout below /tmp, where every pod has a volume.
        mounts += [_shown(each) for each in installation if each.is_relative_to(target)]
        if mount.read_only:
            mounts.append(f"mount -o remount,ro,bind {_inside(target)}")
    return stubs, mounts


def _shown(path: Path) -> str:
    """The line that makes a directory of the machine seen where something is mounted over it."""
    return f"mkdir -p {_inside(path)} && mount --rbind {_quoted(path)} {_inside(path)}"


def _user_lines(program: Program, root: Path) -> list[str]:
    """The user has a name, as it would in an image: some programs do not start without."""
    if program.user is None:
        return []
    passwd = _quoted(root / "passwd")
    line = shlex.quote(f"pod:x:{program.user}:{program.group or program.user}::/tmp:/bin/sh")
    known = f"getent passwd {program.user} >/dev/null"
    return [f"{known} || {{ cat /etc/passwd >{passwd}; echo {line} >>{passwd}; mount --bind {passwd} etc/passwd; }}"]


def _identity(program: Program) -> str:
    if program.user is None:
        return ""
    group = program.user if program.group is None else program.group
    more = "" if program.volumes_group is None else str(program.volumes_group)
    return f"--userspec={program.user}:{group} --groups={more}"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _inside(path: Path) -> str:
    """Relative to the root that is being made."""
    return shlex.quote(str(path.relative_to("/")))
