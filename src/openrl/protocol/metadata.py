"""The metadata of sessions, runs and checkpoints as clients see it."""

import json
from typing import Any


def show_metadata(metadata: dict[str, Any] | None) -> dict[str, str] | None:
    """Clients may send any JSON but accept text only."""
    if metadata is None:
        return None
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
