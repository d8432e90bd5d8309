"""Checks what clients attach to sessions, runs and checkpoints."""

import json

from openrl.errors import BadValue, InvalidRequest
from openrl.store.base import Json

MAX_METADATA_BYTES = 2**16


def check_metadata(metadata: Json | None) -> Json | None:
    """The metadata itself; raises InvalidRequest when it is too large, or holds NUL, which databases refuse."""
    if metadata is None:
        return None
    text = json.dumps(metadata)
    if len(text) > MAX_METADATA_BYTES:
        raise BadValue("bytes of user_metadata", len(text), f"at most {MAX_METADATA_BYTES}", "too_large")
    if "\\u0000" in text:
        message = "user_metadata holds the character NUL (\\u0000), which cannot be stored; leave it out"
        raise InvalidRequest(message, "malformed", bound="text without NUL")
    return metadata
