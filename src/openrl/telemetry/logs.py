"""Sets up structured logs for one process."""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.typing import FilteringBoundLogger, Processor

LogLevel = Literal["debug", "info", "warning", "error"]
_SECRET_FIELDS = frozenset(("api_key", "key", "authorization", "secret", "token", "x_api_key"))
_API_KEY = re.compile(r"tml-[A-Za-z0-9_\-]{4,}")


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


def redact(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:  # noqa: ARG001
    """Replace credentials by "***": whole fields by their name, API keys inside any text."""
    for name, value in event.items():
        if name in _SECRET_FIELDS:
            event[name] = "***"
        elif isinstance(value, str):
            event[name] = _API_KEY.sub("tml-***", value)
    return event


def _renderers(is_terminal: bool) -> list[Processor]:
    # Traces are turned into text before the redaction: an exception's message may quote a key.
    if is_terminal:
        return [redact, structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    return [structlog.processors.format_exc_info, redact, structlog.processors.JSONRenderer()]
