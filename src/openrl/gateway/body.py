"""Reads request bodies within a bound, decompressed."""

import asyncio
import io
from typing import TypeVar

import zstandard
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from openrl.errors import BadValue, InvalidRequest, PayloadTooLarge
from openrl.gateway.context import Call
from openrl.gateway.headers import header
from openrl.protocol.body_parts import MAX_JSON_COST, json_cost
from openrl.protocol.validation import describe_validation

Message = TypeVar("Message", bound=BaseModel)
_READ_BYTES = 2**20
_MAX_EXCESS = 4  # times the limit: what is read of a body that is refused
_SMALL_BYTES = 2**16  # read without asking: the number of connections bounds them
_START_BYTES = 2**10  # enough to hold the address of a pass, at either end
MAX_WINDOW_BYTES = 2**23
"""What a zstd decompressor keeps; every decoder has to support as much, and levels up to 19 need no more."""
_MAX_EXPANDED_BYTES = 2**26
_MAX_EXPANSION = 500
"""Larger content than that may not expand further: tokens and numbers do so 20 times."""
MAX_JSON_BODY_BYTES = 2**25


class BodyTooLarge(PayloadTooLarge):
    """Carries the first bytes of the body and the last that came: they tell which request of which run is refused."""

    def __init__(
        self, message: str, size: int, limit: int, *, start: bytes = b"", end: bytes = b"", is_whole: bool = True
    ) -> None:
        super().__init__(f"{message}; send fewer datums at once", value=size, bound=f"at most {limit} bytes")
        self.start = start
        self.end = end
        self.is_whole = is_whole
        """Whether nothing comes after `end`."""


async def read_body(call: Call, *, is_json: bool = True) -> bytes:
    """The whole body; raises PayloadTooLarge after reading no more than the limit, before or after decompression.

    JSON has a limit of its own, in the memory that reading it takes. Larger bodies wait for their part of the
    process's budget; raises Unavailable when that takes too long.
    """
    limit = call.gateway.config.max_body_bytes
    if is_json:
        limit = min(limit, MAX_JSON_BODY_BYTES)
    encoding = header(call.request, b"content-encoding")
    if encoding not in (None, "identity", "zstd"):
        raise BadValue("Content-Encoding", encoding, "one of identity, zstd", "not_supported")
    body = await _receive(call, limit, is_compressed=encoding == "zstd")
    if encoding == "zstd":
        body = await _decompress(call, body, limit)
    if is_json and len(body) > _SMALL_BYTES:
        await _check_json(call, body)
    return body


async def _check_json(call: Call, body: bytes) -> None:
    cost = await asyncio.to_thread(json_cost, body)
    if cost > MAX_JSON_COST:
        told = f"JSON body has so many parts that reading it takes {cost} bytes of memory; at most {MAX_JSON_COST}"
        raise BodyTooLarge(told, cost, MAX_JSON_COST, start=body[:_START_BYTES], end=body[-_START_BYTES:])
    await call.gateway.bodies.hold(call.lease, len(body) + cost)


async def read_end(call: Call, error: BodyTooLarge, num_bytes: int) -> bytes:
    """The last bytes of a body that was refused; nothing is kept of the rest. Empty where it is far too large."""
    end, size = error.end, 0
    has_more = not error.is_whole
    while has_more:
        piece, has_more = await _next_piece(call.request)
        end = (end + piece)[-num_bytes:]
        size += len(piece)
        if size > _MAX_EXCESS * call.gateway.config.max_body_bytes:
            return b""
    return end[-num_bytes:]


async def read_json(call: Call, model: type[Message]) -> Message:
    """The body as `model`; raises InvalidRequest naming each wrong field."""
    return parse_json(await read_body(call), model)


def parse_json(body: bytes, model: type[Message]) -> Message:
    """`body` as `model`; raises InvalidRequest naming each wrong field."""
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        raise describe_validation(error) from None


async def _decompress(call: Call, body: bytes, limit: int) -> bytes:
    """The content of a zstd body, which is measured before it is kept."""
    await call.gateway.bodies.hold(call.lease, len(body) + MAX_WINDOW_BYTES)
    size, content = await asyncio.to_thread(measure, body, limit)
    if content is not None:
        return content
    await call.gateway.bodies.hold(call.lease, len(body) + MAX_WINDOW_BYTES + size)
    return await asyncio.to_thread(_unpack, body, size)


def measure(body: bytes, limit: int) -> tuple[int, bytes | None]:
    """The size of zstd content, and the content itself where it is small; declared sizes are not believed.

    Raises BodyTooLarge, InvalidRequest.
    """
    kept = io.BytesIO()
    size = 0
    start = b""
    try:
        with _reader(body) as reader:
            while piece := reader.read(_READ_BYTES):
                start = start or piece[:_START_BYTES]
                size += len(piece)
                if size <= _READ_BYTES:
                    kept.write(piece)
                if size > limit:
                    told = f"body is larger than {limit} bytes when decompressed"
                    raise BodyTooLarge(told, size, limit, start=start)
                if size > max(_MAX_EXPANDED_BYTES, _MAX_EXPANSION * len(body)):
                    told = f"body expands to more than {_MAX_EXPANSION} times its {len(body)} bytes"
                    raise BodyTooLarge(told, size, _MAX_EXPANSION * len(body), start=start)
        declared = zstandard.frame_content_size(body)  # -1 where the frame does not say
    except zstandard.ZstdError as error:
        message = f"body of {len(body)} bytes is not valid zstd: {error}"
        raise InvalidRequest(message, "malformed", bound="a zstd frame") from None
    if size < declared:
        message = f"zstd body ends after {size} bytes of the {declared} that it declares; send all of it"
        raise InvalidRequest(message, "malformed", value=size, bound=f"the {declared} bytes that it declares")
    return size, kept.getvalue() if size <= _READ_BYTES else None


def _unpack(body: bytes, size: int) -> bytes:
    """Content that was measured."""
    content = io.BytesIO()
    with _reader(body) as reader:
        while piece := reader.read(_READ_BYTES):
            content.write(piece)
    assert content.tell() == size, "the same bytes give the same content"
    return content.getvalue()


def _reader(body: bytes) -> zstandard.ZstdDecompressionReader:
    return zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).stream_reader(io.BytesIO(body))


async def _receive(call: Call, limit: int, is_compressed: bool) -> bytes:
    declared = header(call.request, b"content-length") or ""
    num_declared = int(declared[:20]) if declared.isascii() and declared.isdigit() else 0
    if _SMALL_BYTES < num_declared <= limit:
        await call.gateway.bodies.hold(call.lease, num_declared)
    piece, has_more = await _next_piece(call.request)
    if not has_more and len(piece) <= limit and num_declared <= limit:
        return piece
    kept, size, before = io.BytesIO(), 0, b""
    while True:
        kept.write(piece)
        size += len(piece)
        if size > limit or num_declared > limit:
            told = f"{num_declared} bytes" if num_declared > limit else "body"
            message = f"{told} is larger than the limit of {limit} bytes"
            size = max(size, num_declared)
            if is_compressed:
                raise BodyTooLarge(message, size, limit)
            start = kept.getvalue()[:_START_BYTES]
            raise BodyTooLarge(message, size, limit, start=start, end=before + piece, is_whole=not has_more)
        if not has_more:
            return kept.getvalue()
        if size > max(_SMALL_BYTES, call.lease.num_bytes):  # its length was not declared
            await call.gateway.bodies.hold(call.lease, min(2 * size, limit))
        before = piece
        piece, has_more = await _next_piece(call.request)


async def _next_piece(request: Request) -> tuple[bytes, bool]:
    """The next bytes of the body, and whether more will come."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)
