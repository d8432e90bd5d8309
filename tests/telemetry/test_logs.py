import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from openrl.telemetry.logs import configure_logs, get_logger, redact


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored_logs() -> Iterator[None]:
    handlers, level = logging.getLogger().handlers, logging.getLogger().level
    yield
    logging.getLogger().handlers = handlers
    logging.getLogger().setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_lines_are_json_with_fields_of_the_context():
    stream = io.StringIO()
    configure_logs("worker-0", stream=stream)
    with structlog.contextvars.bound_contextvars(run="r1", tenant="t1"):
        get_logger("test").info("run opened", request="q1")
    line = json.loads(stream.getvalue())
    assert {name: line[name] for name in ("event", "process", "run", "tenant", "request", "level")} == {
        "event": "run opened", "process": "worker-0", "run": "r1", "tenant": "t1", "request": "q1", "level": "info",
    }  # fmt: skip


def test_lines_are_text_where_a_person_reads():
    stream = Terminal()
    configure_logs("server", stream=stream)
    get_logger("test").info("run opened", request="q1")
    assert "run opened" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_the_standard_librarys_loggers_come_out_in_the_same_form():
    stream = io.StringIO()
    configure_logs("server", stream=stream)
    logging.getLogger("uvicorn.error").warning("port %d", 8000)
    assert json.loads(stream.getvalue())["event"] == "port 8000"


def test_lines_below_the_level_are_not_written():
    stream = io.StringIO()
    configure_logs("server", level="error", stream=stream)
    get_logger("test").warning("small matter")
    logging.getLogger("uvicorn").warning("small matter")
    assert stream.getvalue() == ""


def test_a_trace_is_written_with_the_line():
    stream = io.StringIO()
    configure_logs("server", stream=stream)
    get_logger("test").error("failed", exc_info=ValueError("bad tml-abcdefgh"))
    line = json.loads(stream.getvalue())
    assert "ValueError" in line["exception"]
    assert "abcdefgh" not in line["exception"]


@pytest.mark.parametrize("name", ["api_key", "authorization", "secret"])
def test_fields_that_hold_credentials_are_blanked(name: str):
    assert redact(None, "info", {name: "abc", "run": "r1"}) == {name: "***", "run": "r1"}


def test_keys_inside_text_are_blanked():
    assert redact(None, "info", {"event": "key tml-AbC_123-x refused"})["event"] == "key tml-*** refused"
