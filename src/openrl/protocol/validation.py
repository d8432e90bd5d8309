"""Says of bodies that do not fit their model where they are wrong, what stood there, and what must stand there."""

from collections.abc import Mapping

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from openrl.errors import MAX_SHOWN_CHARACTERS, ErrorCode, InvalidRequest

NO_NUL = r"^[^\x00]*$"
PRINTABLE = r"^[^\x00-\x1f\x7f]*$"
PROJECT_ID = r"^[A-Za-z0-9_][A-Za-z0-9._:@+~-]*$"
_PATTERNS: Mapping[str, str] = {
    NO_NUL: "without the character NUL, which cannot be stored",
    PRINTABLE: "without control characters",
    PROJECT_ID: "of A-Z a-z 0-9 . _ : @ + ~ - and start with a letter, a digit or _",
}
_BOUNDS: Mapping[str, tuple[ErrorCode, str]] = {
    "greater_than_equal": ("out_of_range", "at least {ge}"),
    "less_than_equal": ("out_of_range", "at most {le}"),
    "string_too_short": ("out_of_range", "{min_length} or more characters long"),
    "string_too_long": ("out_of_range", "at most {max_length} characters long"),
    "too_short": ("out_of_range", "{min_length} or more entries long"),
    "too_long": ("out_of_range", "at most {max_length} entries long"),
    "finite_number": ("not_finite", "a finite number"),
    "literal_error": ("unknown_name", "{expected}"),
    "union_tag_invalid": ("unknown_name", "{expected_tags}"),
    "extra_forbidden": ("unknown_name", "left out"),
    "string_pattern_mismatch": ("malformed", "{pattern}"),
    "json_invalid": ("malformed", "valid JSON ({error})"),
    "string_type": ("malformed", "a text"),
    "tuple_type": ("malformed", "a list"),
    "dict_type": ("malformed", "an object"),
    "model_type": ("malformed", "an object"),
    "bool_type": ("malformed", "true or false"),
    "datetime_type": ("malformed", "an RFC 3339 time with its offset"),
    "datetime_parsing": ("malformed", "an RFC 3339 time with its offset"),
    "datetime_from_date_parsing": ("malformed", "an RFC 3339 time with its offset"),
    "timezone_aware": ("malformed", "an RFC 3339 time with its offset"),
}
_SECRETS = frozenset([("weights_access_token",)])
_SHOWN_PROBLEMS = 5


class _Kind(str):
    """Stands for a value that is not shown itself: it may be large, or secret."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def describe_validation(error: ValidationError, prefix: str = "") -> InvalidRequest:
    """A sentence for each problem, at most five; code, value and bound are those of the first that is no absence.

    `prefix` is the place of what was read, unless that is a whole body.
    """
    problems = error.errors(include_url=False)
    told = [_sentence(problem, prefix) for problem in problems[:_SHOWN_PROBLEMS]]
    rest = len(problems) - len(told)
    message = ". ".join(told) + (f". And {rest} more" if rest else "")
    present = [problem for problem in problems if not _is_absence(problem)]
    if not present:
        return InvalidRequest(message, "missing")
    code, bound = _bound(present[0])
    return InvalidRequest(message, code, value=_value(present[0]), bound=bound)


def _sentence(problem: ErrorDetails, prefix: str) -> str:
    place = _place(problem, prefix)
    return (
        f"{place} is missing"
        if _is_absence(problem)
        else f"{place} is {_value(problem)!r}; it must be {_bound(problem)[1]}"
    )


def _is_absence(problem: ErrorDetails) -> bool:
    return problem["type"] in ("missing", "union_tag_not_found")


def _place(problem: ErrorDetails, prefix: str) -> str:
    """The field; of a union, the alternatives are no part of its name."""
    parts = [prefix] * bool(prefix) + [str(part) for part in problem["loc"] if "[" not in str(part)]
    if problem["type"].startswith("union_tag"):
        parts.append("type")
    return ".".join(parts)[:MAX_SHOWN_CHARACTERS] or "body"


def _bound(problem: ErrorDetails) -> tuple[ErrorCode, str]:
    """Code and bound; what is not in the table has its bound in the library's words."""
    code, words = _BOUNDS.get(problem["type"], ("malformed", ""))
    context = dict(problem.get("ctx", {}))
    if "pattern" in context:
        context["pattern"] = _PATTERNS.get(context["pattern"], context["pattern"])
    return code, words.format(**context) if words else problem["msg"].removeprefix("Input should be ")


def _value(problem: ErrorDetails) -> object:
    """What stood there."""
    if problem["type"] == "union_tag_invalid":
        return str(problem.get("ctx", {})["tag"])[:MAX_SHOWN_CHARACTERS]
    value: object = problem["input"]
    if problem["loc"][-1:] in _SECRETS:
        return _Kind("one that is not shown")
    if isinstance(value, dict):
        return _Kind("an object")
    if isinstance(value, list | tuple):
        return _Kind(f"a list of {len(value)}")
    if isinstance(value, bytes) or not problem["loc"]:
        return _Kind(f"of {len(value)} bytes" if isinstance(value, bytes) else f"of type {type(value).__name__}")
    return value[:MAX_SHOWN_CHARACTERS] if isinstance(value, str) else value
