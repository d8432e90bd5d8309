"""One HTTP connection whose head, body and reading are bounded in size and time.

What a client sends slowly, or never ends, holds a connection and nothing else: no request runs for it. Long polls
are not concerned, as then it is the client who waits.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any, Literal, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from openrl.config import GatewayConfig
from openrl.errors import ErrorCode
from openrl.gateway.error_help import PAGE_PATH
from openrl.gateway.secure_headers import SECURE_HEADERS

MAX_HEAD_BYTES = 2**15
"""Of method, URL and headers together."""
MAX_HEADERS = 100
MAX_PIPELINED = 16
"""Requests that a client may send ahead of their answers."""
WINDOW_S = 10.0
"""Rates are measured over this long."""
_MAX_LINGERS = 2
_WAITS_FOR_HEAD, _WAITS_FOR_BODY = "head", "body"
_HEADER_COST = 4  # ": " and the line's end


@dataclass(slots=True)
class Crowd:
    """The connections of one server process: how many there may be, and which of them have nothing running."""

    config: GatewayConfig
    window_s: float = WINDOW_S
    idle: "dict[GuardedProtocol, None]" = field(default_factory=dict["GuardedProtocol", None])
    """Longest idle first."""


def guarded_protocol(config: GatewayConfig, window_s: float = WINDOW_S) -> type[asyncio.Protocol]:
    """What uvicorn takes as the class of its connections."""
    return cast("type[asyncio.Protocol]", partial(GuardedProtocol, Crowd(config, window_s)))


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's own connection within the bounds of `crowd.config`."""

    def __init__(self, crowd: Crowd, **parts: Any) -> None:
        super().__init__(**parts)
        self._crowd = crowd
        self._receiving: Literal["head", "body"] | None = None
        self._watched: Literal["head", "body"] | None = None
        self._receive_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._num_received = 0  # bytes that came last
        self._head_bytes = 0  # that came before the last ones without an end of the head, or a part of the body
        self._body_bytes = 0  # in this window
        self._was_paused = False  # by us, in this window: the client cannot be blamed for a low rate
        self._num_lingers = 0
        self._refusal: tuple[int, ErrorCode, str] | None = None

    # -- life
    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        crowd = self._crowd
        if len(self.connections) > crowd.config.max_connections and not self._make_room():
            self._refuse(503, "unavailable", "the server has as many connections as it takes; try again soon")
            return
        crowd.idle[self] = None
        self._receiving = _WAITS_FOR_HEAD
        self._watch()

    def _make_room(self) -> bool:
        """Close the connection that has been idle longest, if there is one."""
        victim = next(iter(self._crowd.idle), None)
        if victim is None:
            return False
        del self._crowd.idle[victim]
        victim.transport.abort()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.idle.pop(self, None)
        self._receiving = None
        self._watch()
        self._stop_send_timer()
        super().connection_lost(exc)

    # -- what comes in
    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._refusal is not None or self.transport.is_closing():
            return
        assert self.parser is not None, "it is there until the connection is lost"
        self._num_received = len(data)
        num_before = self._body_bytes
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # answered as if it had not asked
        except httptools.HttpParserError:
            self._refuse(*(self._refusal or (400, "malformed", "this is not a valid HTTP/1.1 request")))
            return
        if self._receiving is None:
            if not self._is_busy():
                self._receiving = _WAITS_FOR_HEAD  # empty lines between requests have put off the end of the idle time
        elif self._receiving == _WAITS_FOR_BODY and self._body_bytes != num_before:
            self._head_bytes = 0
        else:  # part of a head, or of what comes between and after the chunks of a body
            self._head_bytes += len(data)
            if self._head_bytes > 2 * MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
                self._refuse(*_TOO_LARGE)
                return
        self._watch()

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            self._stop(429, "slow_down", f"more than {MAX_PIPELINED} requests are sent ahead of their answers")
        self._receiving = _WAITS_FOR_HEAD
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if len(self.headers) > MAX_HEADERS:
            self._stop(431, "too_large", f"the request has more than {MAX_HEADERS} headers")
        if self._head_bytes + self._num_received > MAX_HEAD_BYTES:  # else it is smaller for certain
            self._check_head()
        self._crowd.idle.pop(self, None)
        self._receiving = _WAITS_FOR_BODY
        self._head_bytes = 0
        self._body_bytes = 0
        self._num_lingers = 0
        super().on_headers_complete()
        self.headers = []  # for trailers, which must not pass for headers

    def _check_head(self) -> None:
        sizes = (len(name) + len(value) + _HEADER_COST for name, value in self.headers)
        if len(self.url) + sum(sizes) > MAX_HEAD_BYTES:
            self._stop(*_TOO_LARGE)

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._body_bytes += len(body)
        if self.flow.read_paused:
            self._was_paused = True

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._receiving = None

    def on_response_complete(self) -> None:
        has_next = bool(self.pipeline)
        super().on_response_complete()
        if not has_next and not self.transport.is_closing():
            self._crowd.idle[self] = None

    # -- who is waited for
    def _is_busy(self) -> bool:
        """Whether a request is being answered; the base class has no cycle before the first one."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is not None and not cycle.response_complete

    def _watch(self) -> None:
        """Have a timer for what is being received, and none where nothing is."""
        if self._receiving == self._watched:
            return
        if self._receive_timer is not None:
            self._receive_timer.cancel()
            self._receive_timer = None
        self._watched = self._receiving
        if self._receiving == _WAITS_FOR_HEAD:
            self._receive_timer = self.loop.call_later(self._crowd.config.head_timeout_s, self._head_is_late)
        elif self._receiving == _WAITS_FOR_BODY:
            self._receive_timer = self.loop.call_later(self._crowd.window_s, self._measure_body)

    def _head_is_late(self) -> None:
        if self._head_bytes == 0 and not self._is_busy():
            self.transport.close()  # nothing was asked
        else:
            bound = f"{self._crowd.config.head_timeout_s:g} s"
            self._refuse(408, "too_slow", f"the head of the request did not come within {bound}")

    def _measure_body(self) -> None:
        """End a body that comes slower than it must; after the answer its rest may come for a little while."""
        num_bytes, self._body_bytes = self._body_bytes, 0
        waits_for_us = self._was_paused or self.flow.read_paused or self.cycle.waiting_for_100_continue
        self._was_paused = self.flow.read_paused
        if self.cycle.response_complete:
            self._num_lingers += 1
            if self._num_lingers > _MAX_LINGERS:
                self.transport.abort()
                return
        elif not waits_for_us and num_bytes < self._crowd.config.min_body_rate * self._crowd.window_s:
            rate = f"{num_bytes / self._crowd.window_s:.0f} bytes/s; it must be at least"
            bound = f"{self._crowd.config.min_body_rate} bytes/s"
            self._refuse(408, "too_slow", f"the rate of the body is {rate} {bound}")
            return
        self._receive_timer = self.loop.call_later(self._crowd.window_s, self._measure_body)

    # -- what goes out
    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_send_timer()
        self._measure_sending(None)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_send_timer()

    def _measure_sending(self, before: int | None) -> None:
        """Abort a connection whose client takes its answer slower than it must."""
        num_waiting = self.transport.get_write_buffer_size()
        must_have_gone = self._crowd.config.min_body_rate * self._crowd.window_s
        if before is not None and before - num_waiting < must_have_gone:
            self.transport.abort()
            return
        self._send_timer = self.loop.call_later(self._crowd.window_s, self._measure_sending, num_waiting)

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    # -- refusals, where no request has come to the gateway
    def _stop(self, status: int, code: ErrorCode, detail: str) -> None:
        """Leave the parser, which knows no other way than an exception."""
        self._refusal = status, code, detail
        raise httptools.HttpParserError(detail)

    def _refuse(self, status: int, code: ErrorCode, detail: str) -> None:
        """Answer, unless another answer has begun, and close."""
        self._refusal = status, code, detail
        self._receiving = None
        self._watch()
        is_busy = self._is_busy()
        if is_busy:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not is_busy or (not self.cycle.response_started and not self.pipeline):
            self.transport.write(_answer(status, code, detail))
        self._crowd.idle.pop(self, None)
        self.transport.close()


_TOO_LARGE: tuple[int, ErrorCode, str] = (
    431,
    "too_large",
    f"URL and headers are larger than {MAX_HEAD_BYTES} bytes; send less of them",
)


def _answer(status: int, code: ErrorCode, detail: str) -> bytes:
    """A whole response in the shape of every refusal; the link is relative, as no host may be known."""
    content = json.dumps({"detail": detail, "code": code, "docs": f"{PAGE_PATH}#{code}"}).encode()
    headers: Mapping[bytes, bytes] = {
        **dict(SECURE_HEADERS),
        b"content-type": b"application/json",
        b"content-length": str(len(content)).encode(),
        b"connection": b"close",
        **({b"retry-after": b"1"} if status in (429, 503) else {}),
    }
    lines = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode())]
    lines += [b"%s: %s" % header for header in headers.items()]
    return b"\r\n".join([*lines, b"", content])
