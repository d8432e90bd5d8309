"""Turns messages into length-prefixed msgpack frames, and bytes back into messages.

A frame is a big-endian u32 length and that many bytes of msgpack: `[type name, fields]`. Types are
looked up by name among those of `messages.py`, and fields are checked against their annotations,
so nothing but a well-formed message leaves the decoder.
"""

from collections.abc import Iterator
from typing import get_args

import msgspec

from openrl.errors import InvalidRequest, PayloadTooLarge
from openrl.rpc.messages import Command, Report

Message = Command | Report

MAX_FRAME_BYTES = 64 * 2**20
_LENGTH_BYTES = 4
_ENCODER = msgspec.msgpack.Encoder()
_ENVELOPE = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])
_DECODERS = {kind.__name__: msgspec.msgpack.Decoder(kind) for kind in get_args(Command) + get_args(Report)}


def encode_frame(message: Message) -> bytes:
    """The frame of one message; raises PayloadTooLarge over MAX_FRAME_BYTES."""
    body = _ENCODER.encode((type(message).__name__, message))
    if len(body) > MAX_FRAME_BYTES:
        name = type(message).__name__
        raise PayloadTooLarge(f"{name} takes {len(body)} bytes; a frame holds {MAX_FRAME_BYTES}")
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def decode_body(body: bytes | memoryview) -> Message:
    """The message of one frame without its length; raises InvalidRequest if it is none of ours."""
    try:
        name, fields = _ENVELOPE.decode(body)
        if name not in _DECODERS:
            raise InvalidRequest(f"message type {name!r} is unknown")
        return _DECODERS[name].decode(fields)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"malformed message: {error}") from error


class FrameReader:
    """Collects bytes as they arrive and gives out the messages they complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Messages completed by `data`, in order; the iterator must be run to its end.

        Raises PayloadTooLarge for an announced length over MAX_FRAME_BYTES, InvalidRequest for a
        malformed frame; the stream is unusable after either.
        """
        self._buffer += data
        start = 0
        while (end := self._frame_end(start)) is not None:
            body = bytes(self._buffer[start + _LENGTH_BYTES : end])
            start = end
            yield decode_body(body)
        del self._buffer[:start]

    def _frame_end(self, start: int) -> int | None:
        body_start = start + _LENGTH_BYTES
        if len(self._buffer) < body_start:
            return None
        length = int.from_bytes(self._buffer[start:body_start], "big")
        if length > MAX_FRAME_BYTES:
            raise PayloadTooLarge(f"a frame of {length} bytes was announced; the limit is {MAX_FRAME_BYTES}")
        end = body_start + length
        return end if len(self._buffer) >= end else None
