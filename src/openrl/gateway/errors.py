"""Errors as HTTP responses: one table of statuses, and bodies that clients can read.

Clients take a 400 without Content-Length, or a compressed one, for a proxy's (tinker-api P3), and retry a 409
for minutes (P9): bodies here are plain and complete, and 409 is not in the table.
"""

import math
from collections.abc import Mapping
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from openrl.errors import (
    MAX_SHOWN_CHARACTERS,
    BadValue,
    Forbidden,
    InvalidRequest,
    InvalidToken,
    NotFound,
    OpenRLError,
    PayloadTooLarge,
    QuotaExceeded,
    QuotaReached,
    RequestTimeout,
    ResultExpired,
    SessionEnded,
    Unauthorized,
    Unavailable,
)
from openrl.gateway.error_help import link
from openrl.gateway.secure_headers import NO_STORE

STATUS: Mapping[type[OpenRLError], int] = {
    PayloadTooLarge: 413,
    InvalidRequest: 400,
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    QuotaExceeded: 429,
    QuotaReached: 403,
    SessionEnded: 410,
    ResultExpired: 410,
    RequestTimeout: 408,
    Unavailable: 503,
}
RETRY_AFTER_S = "2"
_LONGEST_RETRY_AFTER_S = 60


def status_of(error: OpenRLError) -> int:
    """Status of the error's nearest ancestor in the table."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def error_response(request: Request, error: OpenRLError, more: Mapping[str, str] | None = None) -> Response:
    """The error's own words under `detail`, its stable code, where that is explained, and what else clients read."""
    content = error_content(request, error) | dict(more or {})
    return JSONResponse(content, status_code=status_of(error), headers=_headers(error))


def _headers(error: OpenRLError) -> dict[str, str] | None:
    match error:
        case InvalidToken():
            return {"WWW-Authenticate": 'Bearer error="invalid_token"'}
        case QuotaExceeded(retry_after_s=float(seconds)):
            return {"Retry-After": str(min(max(math.ceil(seconds), 1), _LONGEST_RETRY_AFTER_S))}
        case Unavailable():
            return {"Retry-After": RETRY_AFTER_S}
        case _:
            return None


def error_content(request: Request, error: OpenRLError) -> dict[str, object]:
    """The body of every refusal."""
    content: dict[str, object] = {
        "detail": printable(str(error)),
        "code": error.code,
        "docs": link(str(request.base_url), error.code),
    }
    if error.value is not None or error.bound is not None:
        content |= {"value": _shown(error.value)}
    return content if error.bound is None else content | {"bound": printable(error.bound)}


async def http_error_response(request: Request, error: Exception) -> Response:
    """What the router refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.NOT_FOUND:
        refusal: OpenRLError = NotFound.of("path", request.url.path)
    else:
        allowed = (error.headers or {}).get("Allow", "")
        refusal = BadValue("method", request.method, f"one of {allowed} at this path", "not_supported")
    request.scope["error_code"] = refusal.code
    response = JSONResponse(error_content(request, refusal), status_code=error.status_code, headers=error.headers)
    response.raw_headers.append(NO_STORE)
    return response


def _shown(value: object) -> object:
    """As JSON carries it; text that clients sent may be long, and numbers NaN."""
    if value is None or isinstance(value, bool) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    return printable(str(value)[:MAX_SHOWN_CHARACTERS])


def printable(text: str) -> str:
    """Texts quote what clients sent, which may hold code points that UTF-8 cannot carry."""
    return text.encode("utf-8", "backslashreplace").decode()
