"""Reads the key that marks repetitions of one HTTP request."""

from openrl.errors import InvalidRequest
from openrl.gateway.context import Call

_MAX_CHARACTERS = 256


def idempotency_key(call: Call) -> str | None:
    """The X-Idempotency-Key, if there is one; raises InvalidRequest."""
    key = call.request.headers.get("x-idempotency-key")
    if key is not None and (len(key) > _MAX_CHARACTERS or not key.isprintable()):
        raise InvalidRequest(f"X-Idempotency-Key must be printable and at most {_MAX_CHARACTERS} characters long")
    return key
