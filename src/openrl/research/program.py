"""The program of a study and its versions, in a Git repository that belongs to the study.

It begins as a copy of what is on the disk: the study's directory, or, where that is part of a repository, the
repository's tracked files too. The user's own repository is read and never written. Every version that an attempt runs
is a commit with a ref of its own, `refs/attempts/NUMBER`. Git runs without the user's configuration, hooks and
credentials, and takes the repository by its path: what an agent writes into its worktree's `.git` decides nothing.
"""

import os
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from openrl.errors import InvalidRequest

AGENTS_DIRECTORY = "agents"
_STATE = ("journal.jsonl", "attempts", AGENTS_DIRECTORY, "stop")  # of the study; no part of its program
_BASELINE = "refs/attempts/baseline"
_IGNORED = "__pycache__/\n*.pyc\n"
_WHO = {
    f"GIT_{role}_{field}": value
    for role in ("AUTHOR", "COMMITTER")
    for field, value in (("NAME", "openrl research"), ("EMAIL", "research@localhost"))
}
_QUIET = (
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "gc.auto=0",
    "-c",
    "core.quotePath=false",
)


@dataclass(frozen=True, slots=True)
class Version:
    """A commit, and the tree that is its content."""

    commit: str
    tree: str


class Program:
    """Blocking: its callers use threads, one at a time."""

    def __init__(self, directory: Path) -> None:
        if shutil.which("git") is None:
            raise InvalidRequest("a study with an [agent] needs git, which is not on the PATH")
        self._study = directory.resolve()
        self._home = self._study / AGENTS_DIRECTORY
        self._repository = self._home / "program.git"
        self._top = _top_of(self._study)
        self._prefix = self._study.relative_to(self._top)

    def baseline(self) -> Version:
        """The program as the study began with it; the first call makes it."""
        if not (self._repository / "HEAD").exists():
            self._home.mkdir(exist_ok=True)
            (self._home / ".gitignore").write_text("*\n")
            self._git("init", "--quiet", "--bare", str(self._repository))
        (self._repository / "info").mkdir(exist_ok=True)
        (self._repository / "info" / "exclude").write_text(_IGNORED)
        if not self._git("for-each-ref", _BASELINE):
            self._commit_tree(self._snapshot(), None, "The program as it was", _BASELINE)
        return self._version(_BASELINE)

    def open_worktree(self, researcher: int, commit: str) -> Path:
        """A new worktree with this version, in place of the researcher's last one; where the study is in it."""
        top = self._worktree(researcher)
        shutil.rmtree(top, ignore_errors=True)
        self._git("worktree", "prune")
        self._git("worktree", "add", "--quiet", "--force", "--detach", str(top), commit)
        (top / self._prefix).mkdir(parents=True, exist_ok=True)
        return top / self._prefix

    def changes(self, researcher: int, commit: str, editable: Sequence[str]) -> tuple[list[str], list[str]]:
        """Paths that differ from the version: those that may, and those that may not."""
        here = self._load_index(researcher, commit)
        excluded = [f":(exclude,glob){each}" for each in editable]
        everything = self._differing(researcher, here, (":/",))
        outside = set(self._differing(researcher, here, (":/", *excluded)))
        top = self._worktree(researcher)
        outside |= {each for each in everything if not _is_plain(top / each)}
        return [each for each in everything if each not in outside], sorted(outside)

    def num_bytes(self, researcher: int, paths: Sequence[str]) -> int:
        """Size of these files in the worktree."""
        top = self._worktree(researcher)
        return sum((top / each).stat().st_size for each in paths if (top / each).exists())

    def commit(self, researcher: int, base: str, paths: Sequence[str], number: int, message: str) -> Version:
        """What the worktree has in these paths, after `base`, as the version of an attempt."""
        here = self._load_index(researcher, base)
        names = "".join(f"{each}\0" for each in paths)
        literal = {**here, "GIT_LITERAL_PATHSPECS": "1"}
        add = ("add", "--all", "--force", "--pathspec-from-file=-", "--pathspec-file-nul")
        self._git(*add, variables=literal, text=names, directory=self._worktree(researcher))
        ref = f"refs/attempts/{number:04d}"
        self._commit_tree(self._git("write-tree", variables=here), base, message, ref)
        return self._version(ref)

    def patch(self, base: str, commit: str) -> str:
        """What the commit changed."""
        return self._git("diff-tree", "-p", "--binary", "--no-ext-diff", "--no-textconv", base, commit) + "\n"

    def checkout(self, commit: str, where: Path) -> Path:
        """The version's files in a directory of its own; where the study is in it."""
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir(parents=True)
        index = where.with_suffix(".index")
        place = {"GIT_WORK_TREE": str(where.resolve()), "GIT_INDEX_FILE": str(index.resolve())}
        self._git("read-tree", commit, variables=place, directory=where)
        self._git("checkout-index", "--all", "--force", variables=place, directory=where)
        index.unlink()
        (where / self._prefix).mkdir(parents=True, exist_ok=True)
        return where / self._prefix

    def _snapshot(self) -> str:
        """The tree of what is on the disk."""
        place = {"GIT_WORK_TREE": str(self._top), "GIT_INDEX_FILE": str(self._home / "baseline.index")}
        state = [f":(exclude,top,literal){self._prefix / name}" for name in _STATE]
        self._git("add", "--all", "--", ".", *state, variables=place, directory=self._study)
        if self._top != self._study:
            own = {"GIT_DIR": str(self._top / ".git")}
            tracked = self._git("ls-files", "-z", variables=own, directory=self._top).split("\0")
            paths = [each for each in tracked if each and _is_kept(self._top / each)]
            names = "".join(f"{each}\0" for each in paths if not self._is_state(self._top / each))
            literal = {**place, "GIT_LITERAL_PATHSPECS": "1"}
            add = ("add", "--force", "--pathspec-from-file=-", "--pathspec-file-nul")
            self._git(*add, variables=literal, text=names, directory=self._top)
        tree = self._git("write-tree", variables=place)
        (self._home / "baseline.index").unlink()
        return tree

    def _is_state(self, path: Path) -> bool:
        return any(path.is_relative_to(self._study / name) for name in _STATE)

    def _load_index(self, researcher: int, commit: str) -> dict[str, str]:
        """Variables with which Git compares the researcher's worktree to a version."""
        index = self._home / f"researcher-{researcher}.index"
        index.unlink(missing_ok=True)
        here = {"GIT_WORK_TREE": str(self._worktree(researcher)), "GIT_INDEX_FILE": str(index)}
        self._git("read-tree", commit, variables=here)
        return here

    def _differing(self, researcher: int, here: Mapping[str, str], pathspecs: Sequence[str]) -> list[str]:
        """Paths from the top; pathspecs are seen from the study's directory."""
        place = self._worktree(researcher) / self._prefix
        place.mkdir(parents=True, exist_ok=True)
        changed = ("diff", "--name-only", "-z", "--no-ext-diff", "--no-textconv", "--no-renames")
        new = ("ls-files", "--others", "--exclude-standard", "--full-name", "-z")
        found = [self._git(*each, "--", *pathspecs, variables=here, directory=place) for each in (changed, new)]
        return sorted({each for names in found for each in names.split("\0") if each})

    def _commit_tree(self, tree: str, base: str | None, message: str, ref: str) -> None:
        parents = () if base is None else ("-p", base)
        commit = self._git("commit-tree", tree, *parents, "-F", "-", text=message)
        self._git("update-ref", ref, commit)

    def _version(self, name: str) -> Version:
        commit, tree = self._git("rev-parse", f"{name}^{{commit}}", f"{name}^{{tree}}").split()
        return Version(commit, tree)

    def _worktree(self, researcher: int) -> Path:
        return self._home / f"researcher-{researcher}"

    def _git(
        self,
        *arguments: str,
        variables: Mapping[str, str] | None = None,
        text: str = "",
        directory: Path | None = None,
    ) -> str:
        environment = {
            "PATH": os.environ.get("PATH", os.defpath), "HOME": str(self._home), "LC_ALL": "C.UTF-8",
            "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_DIR": str(self._repository),
            **_WHO, **(variables or {}),
        }  # fmt: skip
        done = subprocess.run(
            ("git", *_QUIET, *arguments), env=environment, cwd=directory or self._home,
            input=text.encode(errors="surrogateescape"), capture_output=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise InvalidRequest(f"git {arguments[0]}: {done.stderr.decode(errors='replace').strip()[-500:]}")
        return done.stdout.decode(errors="surrogateescape").strip("\n")


def _top_of(directory: Path) -> Path:
    """Of the repository that a directory is in; itself where it is in none."""
    return next((each for each in (directory, *directory.parents) if (each / ".git").exists()), directory)


def _is_plain(path: Path) -> bool:
    """Whether it is a file, or nothing: no link, device or directory."""
    return not os.path.lexists(path) or stat.S_ISREG(path.lstat().st_mode)


def _is_kept(path: Path) -> bool:
    """Whether Git can keep it: a file or a link that is there."""
    return os.path.lexists(path) and (stat.S_ISREG(path.lstat().st_mode) or path.is_symlink())
