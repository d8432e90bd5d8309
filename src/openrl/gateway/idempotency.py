"""Reads the key that marks repetitions of one HTTP request."""

from openrl.errors import BadValue
from openrl.gateway.context import Call

_MAX_CHARACTERS = 256


def idempotency_key(call: Call) -> str | None:
    """The X-Idempotency-Key, if there is one; raises BadValue."""
    key = call.request.headers.get("x-idempotency-key")
    if key is not None and (len(key) > _MAX_CHARACTERS or not key.isprintable()):
        raise BadValue(
            "X-Idempotency-Key", key, f"printable and at most {_MAX_CHARACTERS} characters long", "malformed"
        )
    return key
