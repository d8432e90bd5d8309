"""One HTTP request from authentication to response; the last place an error can stop at."""

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from openrl.errors import NotFound, OpenRLError
from openrl.gateway.auth import authenticate, check_access
from openrl.gateway.body_budget import BodyLease
from openrl.gateway.context import NOBODY, Call, Route
from openrl.gateway.errors import error_response
from openrl.gateway.project_view import Views
from openrl.gateway.secure_headers import NO_STORE
from openrl.telemetry.http import log_fields, note

_log = structlog.get_logger()


class Endpoint:
    """The ASGI app of one route."""

    def __init__(self, views: Views, route: Route, template: str) -> None:
        self._views = views
        self._route = route
        self.template = template
        """The whole path, with the names of its parameters: what metrics and logs call the endpoint."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._answer(Request(scope, receive, send))
        response.raw_headers.append(NO_STORE)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        try:
            return await self._call(request)
        except OpenRLError as error:
            # Frames that still name the error would keep it, and the body that they hold, until the next collection.
            error.__traceback__ = None
            return self._refuse(request, error)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except Exception:  # noqa: BLE001 the last handler: the log has the trace, the caller must not
            _log.exception("call failed", method=self._route.method, path=self._route.path, **log_fields(request.scope))
            return self._refuse(request, OpenRLError("internal error; the server's log has the details"))

    def _refuse(self, request: Request, error: OpenRLError) -> Response:
        request.scope["error_code"] = error.code  # for the metrics around this app
        return error_response(request, error)

    async def _call(self, request: Request) -> Response:
        if "\x00" in request.scope["path"]:  # databases refuse NUL, so no row has it in its id
            raise NotFound.of("path", request.scope["path"])
        views, identity = self._views, NOBODY
        if not self._route.is_public:
            identity = await authenticate(request, views.whole)
            note(request.scope, tenant_id=identity.tenant_id)
            check_access(identity, self._route.access)
            await views.whole.request_rate.admit(identity.tenant_id, self._route.path)
        call = Call(views.of(identity), request, identity, views.of, BodyLease(identity.tenant_id))
        try:
            return await self._route.handler(call)
        finally:
            if call.lease.num_bytes:
                views.whole.bodies.release(call.lease)
