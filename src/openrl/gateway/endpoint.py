"""One HTTP request from authentication to response; the last place an error can stop at."""

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from openrl.errors import NotFound, OpenRLError
from openrl.gateway.auth import authenticate
from openrl.gateway.context import Call, Gateway, Route
from openrl.gateway.errors import error_response

_log = structlog.get_logger()


class Endpoint:
    """The ASGI app of one route."""

    def __init__(self, gateway: Gateway, route: Route) -> None:
        self._gateway = gateway
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._answer(Request(scope, receive, send))
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        try:
            return await self._call(request)
        except OpenRLError as error:
            return error_response(request, error)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except Exception:  # noqa: BLE001 the last handler: the log has the trace, the caller must not
            _log.exception("request failed", method=self._route.method, path=self._route.path)
            return error_response(request, OpenRLError("internal error; the server's log has the details"))

    async def _call(self, request: Request) -> Response:
        if "\x00" in request.scope["path"]:  # databases refuse NUL, so no row has it in its id
            raise NotFound.of("path", request.scope["path"])
        tenant_id = "" if self._route.is_public else await authenticate(request, self._gateway)
        return await self._route.handler(Call(self._gateway, request, tenant_id))
