"""Reads single headers of a request."""

from starlette.requests import Request


def header(request: Request, name: bytes) -> str | None:
    """The first header of a name in lower case; Starlette's mapping decodes all that stand before it."""
    for key, value in request.scope["headers"]:
        if key == name:
            return value.decode("latin-1")
    return None
