"""Reads query parameters within bounds."""

from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request

from openrl.errors import BadValue
from openrl.protocol.validation import describe_validation
from openrl.protocol.wire import ProjectId

MAX_PAGE = 1000
MAX_OFFSET = 2**31 - 1
_PROJECT_ID: TypeAdapter[str] = TypeAdapter(ProjectId)


def read_page(request: Request, default_limit: int) -> tuple[int, int]:
    """Limit and offset of a listing; raises InvalidRequest naming the bounds."""
    return _integer(request, "limit", default_limit, 1, MAX_PAGE), _integer(request, "offset", 0, 0, MAX_OFFSET)


def _integer(request: Request, name: str, default: int, low: int, high: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    is_number = text.isascii() and text.isdigit() and len(text) <= 10
    if not is_number or not low <= int(text) <= high:
        raise BadValue(name, text, f"a whole number between {low} and {high}")
    return int(text)


def read_project(request: Request) -> str | None:
    """The project that a listing is restricted to, if any; raises InvalidRequest for what is no project's id."""
    text = request.query_params.get("project_id")
    try:
        return None if text is None else _PROJECT_ID.validate_python(text)
    except ValidationError as error:
        raise describe_validation(error, "project_id") from None


def check_access_scope(request: Request) -> None:
    """Refuse unknown scopes; the known ones agree here, as a tenant has access to what it owns."""
    scope = request.query_params.get("access_scope", "owned")
    if scope not in ("owned", "accessible"):
        raise BadValue("access_scope", scope, "one of owned, accessible", "unknown_name")
