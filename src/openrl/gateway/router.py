"""Finds the endpoint of a path: whole paths by one look-up, paths with parameters by Starlette's router."""

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route as StarletteRoute
from starlette.types import Receive, Scope, Send

from openrl.gateway.context import Gateway, Route
from openrl.gateway.endpoint import Endpoint
from openrl.gateway.errors import http_error_response
from openrl.gateway.project_view import Views


class Router:
    """The ASGI app of all endpoints.

    The busy endpoints have paths without parameters, and Starlette's own stack of applications would cost more
    than all that the gateway does for them.
    """

    def __init__(self, gateway: Gateway, routes: Sequence[tuple[str, Route]]) -> None:
        """`routes`: each with the prefix of its path."""
        views = Views(gateway)
        endpoints = [
            (prefix + route.path, route.method, Endpoint(views, route, prefix + route.path)) for prefix, route in routes
        ]
        self._whole = {(method, path): endpoint for path, method, endpoint in endpoints if "{" not in path}
        self._rest = Starlette(
            routes=[StarletteRoute(path, endpoint, methods=[method]) for path, method, endpoint in endpoints],
            exception_handlers={HTTPException: http_error_response},
        )
        self._rest.router.redirect_slashes = False  # a redirect would name whatever host the client did

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._whole.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if endpoint is None:  # also paths and methods that are refused
            await self._rest(scope, receive, send)
        else:
            scope["endpoint"] = endpoint
            await endpoint(scope, receive, send)
