"""Pages for people and tools: the API's description, and what errors mean."""

from starlette.responses import HTMLResponse, Response

from openrl.gateway.context import Call, Route
from openrl.gateway.error_help import PAGE_PATH, html_page
from openrl.gateway.replies import json_reply
from openrl.store.base import Json


async def errors_page(_: Call) -> Response:
    """What each error code means."""
    return HTMLResponse(html_page())


def description(document: Json) -> Route:
    """The route of /openapi.json."""

    async def openapi(_: Call) -> Response:
        """This document."""
        return json_reply(document)

    return Route("GET", "/openapi.json", openapi, is_public=True)


ROUTES = (Route("GET", PAGE_PATH, errors_page, is_public=True),)
