"""Tells whoever started a process that it is there."""

import json
import os
from collections.abc import Mapping
from pathlib import Path


def write_ready_file(file: Path, content: Mapping[str, str]) -> None:
    """JSON; whole from the first moment it can be seen, readable by its owner only."""
    aside = file.with_name(f"{file.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as out:
        json.dump(content, out)
    aside.replace(file)
