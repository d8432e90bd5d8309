"""Says what reading a body would cost, before it is read.

Parsers make objects of a hundred bytes and more out of parts that are two bytes on the wire: 4 MiB of empty datums
are 700 MB and half a minute of decoding. So parts are counted first, which takes no memory.
"""

from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from openrl.errors import BadValue, InvalidRequest
from openrl.protocol import tinker_pb2 as pb

MAX_PARTS = 2**19
"""Of a protobuf body: fields at every depth, and entries of packed lists."""
_UNCOUNTED_BYTES = 2**16
"""Whatever a body of this size holds, it cannot cost much."""
MAX_JSON_COST = 160 * 2**20
"""Of memory, while a JSON body is read."""
_JSON_COSTS = ((b"{", 512), (b"[", 512), (b":", 512), (b'"', 80), (b",", 48))
"""Bytes of memory for each such character, measured with pydantic: an object, an array, a key, a text, a number."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Kinds = Mapping[int, "Kinds | None"]
"""By field number: the fields of the message that stands there, None where a packed list does."""


def json_cost(body: bytes) -> int:
    """About how much memory it takes to read a JSON body, beside the body."""
    return sum(body.count(character) * cost for character, cost in _JSON_COSTS)


def check_parts(body: bytes) -> None:
    """Raises InvalidRequest for a ForwardBackwardRequest of too many parts, or whose parts overlap its end."""
    if len(body) > _UNCOUNTED_BYTES:
        _count(body, _REQUEST)


def _count(body: bytes, kinds: Kinds) -> None:
    """Walks the fields of a message and of those inside it."""
    num_parts = 0
    position = 0
    open_messages: list[tuple[int, Kinds]] = [(len(body), kinds)]
    while open_messages:
        if num_parts > MAX_PARTS:
            raise BadValue("parts of the body", f"over {MAX_PARTS}", f"at most {MAX_PARTS}", "too_large")
        end, kinds = open_messages[-1]
        if position == end:
            open_messages.pop()
            continue
        num_parts += 1
        tag, position = _varint(body, position, end)
        wire_type = tag & 7
        if wire_type == _BYTES:
            length, position = _varint(body, position, end)
            if length > end - position:
                raise _malformed(f"a field of {length} bytes ends after the {end - position} that are left")
            inner = kinds.get(tag >> 3, _NO_MESSAGE)
            if inner is None:
                num_parts += length  # each entry of a packed list takes at least a byte
            elif inner is not _NO_MESSAGE:
                open_messages.append((position + length, inner))
                continue  # its fields come next
            position += length
        elif wire_type == _VARINT:
            _, position = _varint(body, position, end)
        elif wire_type in (_FIXED32, _FIXED64):
            position += 4 if wire_type == _FIXED32 else 8
            if position > end:
                raise _malformed("a number is cut off")
        else:
            raise _malformed(f"wire type {wire_type} is none of 0, 1, 2, 5")


def _varint(body: bytes, position: int, end: int) -> tuple[int, int]:
    """The number at `position` and where it ends."""
    value = shift = 0
    while position < end and shift < 70:
        byte = body[position]
        position += 1
        if byte < 0x80:
            return value | byte << shift, position
        value |= (byte & 0x7F) << shift
        shift += 7
    raise _malformed("a number is cut off, or longer than 10 bytes")


def _malformed(why: str) -> InvalidRequest:
    message = f"body is not a ForwardBackwardRequest: {why}"
    return InvalidRequest(message, "malformed", bound="a ForwardBackwardRequest in protobuf")


def _kinds(descriptor: Any) -> Kinds:
    """The fields that hold messages or packed lists; ours are not recursive."""
    found: dict[int, Kinds | None] = {}
    for field in descriptor.fields:
        if field.message_type is not None:
            found[field.number] = _kinds(field.message_type)
        elif field.is_repeated and field.type not in (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_STRING):
            found[field.number] = None
    return found


_NO_MESSAGE: Kinds = {}
_REQUEST = _kinds(pb.ForwardBackwardRequest.DESCRIPTOR)
