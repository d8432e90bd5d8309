"""The pages of studies as an ASGI app that can be mounted at any path: all of its URLs are relative."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from openrl.errors import BadValue, NotFound, OpenRLError
from openrl.gateway.errors import printable, status_of
from openrl.research.pages.assets import MEDIA_TYPES, asset_names, read_asset
from openrl.research.pages.follower import Cursor
from openrl.research.pages.library import Library, as_json

MAX_ATTEMPT = 10**9
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked for again with its ETag
}


def create_study_app(directory: Path, gpu_hour_price: float | None = None) -> Starlette:
    """Page and API of the studies in a directory, for reading alone.

    Who may ask is not its business: whoever mounts it checks that, and the Host of requests.
    """
    pages = _Pages(Library(directory, gpu_hour_price))
    routes = [
        Route("/", pages.page),
        Route("/static/{name}", pages.asset),
        Route("/api/v1/studies", pages.studies),
        Route("/api/v1/studies/{study}", pages.study),
        Route("/api/v1/studies/{study}/findings", pages.findings),
        Route("/api/v1/studies/{study}/attempts/{number}", pages.attempt),
    ]
    return Starlette(routes=routes, exception_handlers={OpenRLError: _refuse, HTTPException: _refuse_path})


class _Pages:
    """Handlers; plain functions, which Starlette runs in threads."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def page(self, request: Request) -> Response:
        if not request.url.path.endswith("/"):
            return RedirectResponse(f"{request.url.path.rpartition('/')[2]}/", headers=HEADERS)
        return _tagged(request, read_asset("index.html"), "text/html")

    def asset(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in asset_names():
            raise NotFound.of("file", name)
        return _tagged(request, read_asset(name), MEDIA_TYPES[Path(name).suffix])

    def studies(self, request: Request) -> Response:
        return _json(request, {"studies": self._library.studies()})

    def study(self, request: Request) -> Response:
        name, given = request.path_params["study"], request.query_params.get("after")
        after = None if given is None else Cursor.parse(given)
        tag = f'"{self._library.version(name)}"'
        if request.headers.get("If-None-Match") == tag:
            return Response(status_code=304, headers={**HEADERS, "ETag": tag})
        return Response(
            self._library.study(name, after), media_type="application/json", headers={**HEADERS, "ETag": tag}
        )

    def findings(self, request: Request) -> Response:
        return _json(request, self._library.findings(request.path_params["study"]))

    def attempt(self, request: Request) -> Response:
        given = request.path_params["number"]
        if not (given.isascii() and given.isdigit() and 1 <= int(given[:10]) <= MAX_ATTEMPT and len(given) <= 10):
            raise BadValue("attempt", given, f"a whole number from 1 to {MAX_ATTEMPT}")
        return _json(request, self._library.attempt(request.path_params["study"], int(given)))


def _json(request: Request, content: Mapping[str, object]) -> Response:
    return _tagged(request, as_json(content), "application/json")


def _tagged(request: Request, content: str, media_type: str) -> Response:
    """With the content's checksum; without the content where the client has it."""
    body = content.encode("utf-8", "backslashreplace")
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {**HEADERS, "ETag": tag}
    if request.headers.get("If-None-Match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=media_type, headers=headers)


async def _refuse(request: Request, error: Exception) -> Response:  # noqa: ARG001  # Starlette's signature
    assert isinstance(error, OpenRLError)
    content = {"detail": printable(str(error)), "code": error.code}
    return JSONResponse(content, status_code=status_of(error), headers=HEADERS)


async def _refuse_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = NotFound.of("path", request.url.path) if error.status_code == 404 else None
    detail = str(known) if known else f"method is {request.method}; it must be GET"
    code = known.code if known else "not_supported"
    headers = {**(error.headers or {}), **HEADERS}
    return JSONResponse({"detail": printable(detail), "code": code}, status_code=error.status_code, headers=headers)
