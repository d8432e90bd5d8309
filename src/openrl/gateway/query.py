"""Reads query parameters within bounds."""

from starlette.requests import Request

from openrl.errors import BadValue

MAX_PAGE = 1000
MAX_OFFSET = 2**31 - 1


def read_page(request: Request, default_limit: int) -> tuple[int, int]:
    """Limit and offset of a listing; raises InvalidRequest naming the bounds."""
    return _integer(request, "limit", default_limit, 1, MAX_PAGE), _integer(request, "offset", 0, 0, MAX_OFFSET)


def _integer(request: Request, name: str, default: int, low: int, high: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    is_number = text.isascii() and text.isdigit() and len(text) <= 10
    if not is_number or not low <= int(text) <= high:
        raise BadValue(name, text[:40], f"a whole number between {low} and {high}")
    return int(text)
