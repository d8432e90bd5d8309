"""Sets up structured logs for one process."""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, Protocol, TextIO, cast

import structlog
from structlog.typing import FilteringBoundLogger, Processor

LogLevel = Literal["debug", "info", "warning", "error"]
_SECRET_FIELDS = frozenset(("api_key", "key", "authorization", "secret", "token", "x_api_key"))
_SECRETS = (
    (re.compile(r"tml-[A-Za-z0-9_\-]{4,}"), "tml-***"),  # API keys
    (re.compile(r"eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]+\.[A-Za-z0-9_\-]+"), "eyJ***"),  # tokens
    (re.compile(r"[A-Za-z0-9_=\-]{40,}\.[0-9a-f]{64}"), "***"),  # signed links
    (re.compile(r"(://[^/\s:@]*):[^/\s@]+@"), r"\1:***@"),  # passwords in URLs
    (re.compile(r"(?i)(X-Amz-(?:Signature|Credential|Security-Token)=)[^&\s\"]+"), r"\1***"),
)
_QUIET = ("sqlalchemy", "botocore", "asyncio", "urllib3", "httpx", "httpcore")
"""At their lowest level these write statements with their values, or headers."""


def configure_logs(process: str, level: LogLevel = "info", stream: TextIO | None = None) -> None:
    """Log to `stream` (stderr): one JSON object a line, or coloured text where it is a terminal.

    Lines of the standard library's loggers (uvicorn, sqlalchemy) come out in the same form. Every
    line carries `process` and what `structlog.contextvars` holds (request, run, tenant).
    """
    out = stream or sys.stderr
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(out.isatty())],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(process=process)


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger that takes fields: `log.info("run opened", run_id=...)`."""
    return cast(FilteringBoundLogger, structlog.get_logger(name))


class OfRequest(Protocol):
    """Whatever belongs to one request."""

    @property
    def request_id(self) -> str: ...
    @property
    def run_id(self) -> str: ...
    @property
    def tenant_id(self) -> str: ...
    @property
    def trace_context(self) -> str | None: ...


def request_fields(request: OfRequest) -> dict[str, str]:
    """What every line about a request says of it."""
    fields = {"request_id": request.request_id, "run_id": request.run_id, "tenant_id": request.tenant_id}
    if request.trace_context:
        fields["trace_id"] = trace_id_of(request.trace_context)
    return fields


def trace_id_of(trace_context: str) -> str:
    """The trace that a W3C traceparent names."""
    return trace_context[3:35]


def redact(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:  # noqa: ARG001
    """Replace credentials by "***": whole fields by their name, and what looks like one inside any text."""
    for name, value in event.items():
        if name in _SECRET_FIELDS:
            event[name] = "***"
        elif isinstance(value, str):
            event[name] = without_secrets(value)
    return event


def without_secrets(text: str) -> str:
    """The text with every key, token, signed link and password in it made unreadable."""
    for pattern, shown in _SECRETS:
        text = pattern.sub(shown, text)
    return text


def _redact_line(logger: object, method: str, line: str) -> str:  # noqa: ARG001
    """The whole line again: traces, and values that are no text, have become part of it."""
    return without_secrets(line)


def _renderers(is_terminal: bool) -> list[Processor]:
    if is_terminal:
        console = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        return [redact, console, cast(Processor, _redact_line)]
    json_lines = structlog.processors.JSONRenderer()
    return [structlog.processors.format_exc_info, redact, json_lines, cast(Processor, _redact_line)]
