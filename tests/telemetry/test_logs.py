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


def test_whatever_looks_like_a_secret_is_blanked_wherever_it_stands():
    link = f"{'QWxpY2U' * 20}.{'0af3' * 16}"
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"
    texts = [f"GET /api/v1/archives/{link}", f"token {token}", "postgresql+psycopg://openrl:hunter2@db:5432/openrl"]
    texts.append("https://s3/bucket/key?X-Amz-Credential=AKIA&X-Amz-Signature=abcdef0123&x=1")
    secrets = (link, token, "hunter2", "abcdef0123", "AKIA")
    for stream in (io.StringIO(), Terminal()):
        configure_logs("server", "debug", stream)
        for text in texts:
            get_logger("test").warning("failed", error=ValueError(text), values=[text], exc_info=ValueError(text))
            logging.getLogger("library").warning("failed: %s", text)
        assert stream.getvalue().count("db:5432/openrl") >= 3
        assert not [secret for secret in secrets if secret in stream.getvalue()]


def test_libraries_that_log_values_are_quiet_at_the_lowest_level():
    stream = io.StringIO()
    configure_logs("server", "debug", stream)
    logging.getLogger("sqlalchemy.engine.Engine").info("SELECT 'a value'")
    logging.getLogger("sqlalchemy").warning("a warning")
    assert "a value" not in stream.getvalue()
    assert "a warning" in stream.getvalue()
