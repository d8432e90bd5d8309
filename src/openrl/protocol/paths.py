"""The grammar of ids and of tinker:// paths (tinker-api §5.1, §5.2)."""

import re
from dataclasses import dataclass
from typing import get_args

from openrl.errors import BadValue
from openrl.protocol.runs import CheckpointKind

_KINDS: tuple[str, ...] = get_args(CheckpointKind)
CHECKPOINT_NAME = r"^[A-Za-z0-9_][A-Za-z0-9._=+@,~-]{0,199}$"
_NAME = re.compile(CHECKPOINT_NAME)
_RUN_ID = re.compile(r"[^/\x00-\x20\x7f]{1,256}")


@dataclass(frozen=True, slots=True)
class CheckpointPath:
    """Address of saved weights; `str()` gives the tinker:// form."""

    run_id: str
    kind: CheckpointKind
    name: str

    @property
    def checkpoint_id(self) -> str:
        """Address within the run: kind and name."""
        return f"{self.kind}/{self.name}"

    def __str__(self) -> str:
        return f"tinker://{self.run_id}/{self.kind}/{self.name}"


def parse_checkpoint_path(path: str) -> CheckpointPath:
    """Raises InvalidRequest unless `path` is `tinker://<run>/<kind>/<name>`."""
    scheme, separator, rest = path.partition("://")
    segments = rest.split("/")
    if scheme != "tinker" or not separator or len(segments) != 3 or not _RUN_ID.fullmatch(segments[0]):
        raise BadValue("path", path, "of the form tinker://<run id>/<kind>/<name>", "malformed")
    run_id, kind, name = segments
    return CheckpointPath(run_id, parse_checkpoint_kind(kind), parse_checkpoint_name(name))


def parse_checkpoint_kind(kind: str) -> CheckpointKind:
    """Raises InvalidRequest with the known kinds."""
    for known in get_args(CheckpointKind):
        if kind == known:
            return known
    raise BadValue("checkpoint kind", kind, f"one of {', '.join(_KINDS)}", "unknown_name")


def parse_checkpoint_name(name: str) -> str:
    """The name itself; raises InvalidRequest for one that would not survive as one path segment of a URL."""
    if not _NAME.fullmatch(name):
        rule = "1 to 200 of A-Z a-z 0-9 . _ = + @ , ~ - and start with a letter, a digit or _"
        raise BadValue("checkpoint name", name, rule, "malformed")
    return name


def training_run_id(session_id: str, model_seq_id: int) -> str:
    """The id that clients compute themselves after a load (tinker-api §0)."""
    return f"{session_id}:train:{model_seq_id}"


def sampling_session_id(session_id: str, sampling_session_seq_id: int) -> str:
    """Id of a sampler; its counter is shared with unnamed saves."""
    return f"{session_id}:sample:{sampling_session_seq_id}"
