"""Pages for people and tools: the API's description, and what errors mean."""

from starlette.responses import HTMLResponse, Response

from openrl.gateway.context import Call, Route
from openrl.gateway.error_help import PAGE_PATH, html_page
from openrl.gateway.replies import JSON_TYPE, json_reply
from openrl.gateway.secure_headers import PAGE_POLICY
from openrl.store.base import Json


async def errors_page(_: Call) -> Response:
    """What each error code means."""
    return HTMLResponse(html_page(), headers={"Content-Security-Policy": PAGE_POLICY})


def description(document: Json) -> Route:
    """The route of /openapi.json."""

    content = bytes(json_reply(document).body)  # once: everybody may ask for it

    async def openapi(_: Call) -> Response:
        """This document."""
        return Response(content, media_type=JSON_TYPE)

    return Route("GET", "/openapi.json", openapi, "read", is_public=True)


ROUTES = (Route("GET", PAGE_PATH, errors_page, "read", is_public=True),)
