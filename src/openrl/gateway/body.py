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
from openrl.protocol.validation import describe_validation

Message = TypeVar("Message", bound=BaseModel)
_READ_BYTES = 2**20
_MAX_EXCESS = 4  # times the limit: what is read of a body that is refused
_MAX_WINDOW_BYTES = 2**27  # what zstd itself allows without the --long switch


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


async def read_body(call: Call) -> bytes:
    """The whole body; raises PayloadTooLarge after reading no more than the limit, before or after decompression."""
    limit = call.gateway.config.max_body_bytes
    encoding = header(call.request, b"content-encoding")
    if encoding not in (None, "identity", "zstd"):
        raise BadValue("Content-Encoding", encoding, "one of identity, zstd", "not_supported")
    body = await _receive(call.request, limit, is_compressed=encoding == "zstd")
    if encoding == "zstd":
        return await asyncio.to_thread(decompress, body, limit)
    return body


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


def decompress(body: bytes, limit: int) -> bytes:
    """Zstandard content, read piece by piece: declared sizes are not believed."""
    pieces: list[bytes] = []
    size = 0
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
    try:
        with decompressor.stream_reader(io.BytesIO(body)) as reader:
            while piece := reader.read(_READ_BYTES):
                pieces.append(piece)
                size += len(piece)
                if size > limit:
                    told = f"body is larger than {limit} bytes when decompressed"
                    raise BodyTooLarge(told, size, limit, start=pieces[0])
        declared = zstandard.frame_content_size(body)  # -1 where the frame does not say
    except zstandard.ZstdError as error:
        message = f"body of {len(body)} bytes is not valid zstd: {error}"
        raise InvalidRequest(message, "malformed", bound="a zstd frame") from None
    if size < declared:
        message = f"zstd body ends after {size} bytes of the {declared} that it declares; send all of it"
        raise InvalidRequest(message, "malformed", value=size, bound=f"the {declared} bytes that it declares")
    return b"".join(pieces)


async def _receive(request: Request, limit: int, is_compressed: bool) -> bytes:
    declared = header(request, b"content-length") or ""
    is_declared_too_large = declared.isascii() and declared.isdigit() and int(declared[:20]) > limit
    pieces: list[bytes] = []
    size = 0
    has_more = True
    while has_more:
        piece, has_more = await _next_piece(request)
        pieces.append(piece)
        size += len(piece)
        if size > limit or is_declared_too_large:
            told = f"{declared[:20]} bytes" if is_declared_too_large else "body"
            message = f"{told} is larger than the limit of {limit} bytes"
            size = int(declared[:20]) if is_declared_too_large else size
            if is_compressed:
                raise BodyTooLarge(message, size, limit)
            raise BodyTooLarge(message, size, limit, start=pieces[0], end=b"".join(pieces[-2:]), is_whole=not has_more)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def _next_piece(request: Request) -> tuple[bytes, bool]:
    """The next bytes of the body, and whether more will come."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)
