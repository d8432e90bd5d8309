"""Errors as HTTP responses: one table of statuses, and bodies that clients can read.

Clients take a 400 without Content-Length, or a compressed one, for a proxy's (tinker-api P3), and retry a 409
for minutes (P9): bodies here are plain and complete, and 409 is not in the table.
"""

import math
from collections.abc import Mapping
from http import HTTPStatus

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from openrl.errors import (
    ErrorCode,
    InvalidRequest,
    InvalidToken,
    NotFound,
    OpenRLError,
    PayloadTooLarge,
    QuotaExceeded,
    RequestTimeout,
    SessionEnded,
    Unauthorized,
    Unavailable,
)
from openrl.gateway.error_help import link

STATUS: Mapping[type[OpenRLError], int] = {
    PayloadTooLarge: 413,
    InvalidRequest: 400,
    Unauthorized: 401,
    NotFound: 404,
    QuotaExceeded: 429,
    SessionEnded: 410,
    RequestTimeout: 408,
    Unavailable: 503,
}
_SHOWN_PROBLEMS = 5
_SHOWN_CHARACTERS = 120


def status_of(error: OpenRLError) -> int:
    """Status of the error's nearest ancestor in the table."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def error_response(request: Request, error: OpenRLError) -> Response:
    """The error's own words under `detail`, its stable code, and where that is explained."""
    content = {"detail": _printable(str(error)), "code": error.code, "docs": link(str(request.base_url), error.code)}
    if error.bound is not None:
        content |= {"value": _shown(error.value), "bound": _printable(error.bound)}
    headers = {"WWW-Authenticate": 'Bearer error="invalid_token"'} if isinstance(error, InvalidToken) else None
    return JSONResponse(content, status_code=status_of(error), headers=headers)


async def http_error_response(request: Request, error: Exception) -> Response:
    """What the router refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    code: ErrorCode = "not_found" if error.status_code == HTTPStatus.NOT_FOUND else "invalid_request"
    content = {"detail": error.detail, "code": code, "docs": link(str(request.base_url), code)}
    return JSONResponse(content, status_code=error.status_code, headers=error.headers)


def _shown(value: object) -> object:
    """As JSON carries it; text that clients sent may be long, and numbers NaN."""
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return _printable(str(value)[:_SHOWN_CHARACTERS])


def describe_validation(error: ValidationError) -> InvalidRequest:
    """Where the body is wrong, in which way, and what stood there."""
    problems = error.errors(include_url=False, include_context=False)
    shown = [f"{_place(problem['loc'])}: {_problem(problem['msg'], problem['input'])}" for problem in problems]
    rest = len(shown) - _SHOWN_PROBLEMS
    message = "; ".join(shown[:_SHOWN_PROBLEMS]) + (f"; and {rest} more" if rest > 0 else "")
    return InvalidRequest(message, "missing" if all(each["type"] == "missing" for each in problems) else "malformed")


def _place(location: tuple[int | str, ...]) -> str:
    return ".".join(map(str, location))[:_SHOWN_CHARACTERS] or "body"


def _problem(message: str, value: object) -> str:
    if isinstance(value, dict | list | tuple | bytes) or message == "Field required":
        return message
    return f"{message}, not {repr(value)[:_SHOWN_CHARACTERS]}"


def _printable(text: str) -> str:
    """Texts quote what clients sent, which may hold code points that UTF-8 cannot carry."""
    return text.encode("utf-8", "backslashreplace").decode()
