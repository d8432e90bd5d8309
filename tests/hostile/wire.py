"""Protobuf as a tree of fields that can be written wrongly."""

from dataclasses import dataclass, replace

from hypothesis import strategies as st

from openrl.protocol.body_parts import _REQUEST, Kinds

VARINT, FIXED64, BYTES, GROUP, GROUP_END, FIXED32 = range(6)


@dataclass(frozen=True)
class Field:
    """One field; `content` is its number, bytes or fields. `length` lies about the size, if it is given."""

    number: int
    wire_type: int
    content: "int | bytes | tuple[Field, ...]"
    length: int | None = None

    def encode(self) -> bytes:
        tag = varint(self.number << 3 | self.wire_type)
        if isinstance(self.content, int):
            return tag + varint(self.content)
        body = self.content if isinstance(self.content, bytes) else encode(self.content)
        if self.wire_type != BYTES:
            return tag + body
        return tag + varint(len(body) if self.length is None else self.length) + body


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def encode(fields: tuple[Field, ...]) -> bytes:
    return b"".join(each.encode() for each in fields)


def decode(body: bytes, kinds: Kinds = _REQUEST) -> tuple[Field, ...]:
    """The fields of a valid body."""
    fields: list[Field] = []
    position = 0
    while position < len(body):
        tag, position = read_varint(body, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == VARINT:
            value, position = read_varint(body, position)
            fields.append(Field(number, wire_type, value))
            continue
        length = {FIXED32: 4, FIXED64: 8}.get(wire_type, 0)
        if wire_type == BYTES:
            length, position = read_varint(body, position)
        content = body[position : position + length]
        position += length
        inner = kinds.get(number) if number in kinds else None
        fields.append(Field(number, wire_type, content if not inner else decode(content, inner)))
    return tuple(fields)


def read_varint(body: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = body[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position


ODD_NUMBERS = (0, 1, 2**31 - 1, 2**31, 2**32, 2**62, 2**63, 2**64 - 1, 2**70)
ODD_BYTES = (b"", b"\x00", b"\xff" * 4, b"\xff" * 8, bytes(1000), "é\x00".encode(), b"\xc3", b"\x00\x00\xc0\x7f" * 3)


@st.composite
def mutated(draw: st.DrawFn, fields: tuple[Field, ...], depth: int = 0) -> tuple[Field, ...]:
    """The fields with one place changed, somewhere inside."""
    if not fields:
        return (Field(draw(st.integers(1, 2**29 - 1)), BYTES, b""),)
    at = draw(st.integers(0, len(fields) - 1))
    old = fields[at]
    if isinstance(old.content, tuple) and draw(st.integers(0, 3)):
        new = (replace(old, content=draw(mutated(old.content, depth + 1))),)
    else:
        new = draw(changed(old))
    return (*fields[:at], *new, *fields[at + 1 :])


@st.composite
def changed(draw: st.DrawFn, old: Field) -> tuple[Field, ...]:
    """What may stand in the place of one field."""
    size = len(old.encode())
    match draw(st.integers(0, 9)):
        case 0:
            return ()
        case 1:
            return (old,) * draw(st.sampled_from((2, 3, 100, 5000)))
        case 2:
            return (replace(old, number=draw(st.integers(1, 12) | st.integers(1, 2**29 - 1))),)
        case 3:
            return (replace(old, wire_type=draw(st.integers(0, 7))),)
        case 4:
            lie = draw(st.sampled_from((0, 1, size - 1, size + 1, 2**31 - 1, 2**32, 2**63, 2**64 - 1)))
            return (replace(old, wire_type=BYTES, length=lie),)
        case 5:
            return (replace(old, content=draw(st.sampled_from(ODD_NUMBERS)), wire_type=VARINT),)
        case 6:
            content = draw(st.sampled_from(ODD_BYTES) | st.binary(max_size=64))
            return (replace(old, content=content, wire_type=BYTES),)
        case 7:
            return (old, Field(draw(st.integers(8, 2**29 - 1)), BYTES, draw(st.binary(max_size=64))))
        case 8:
            return (nested(old, draw(st.sampled_from((2, 99, 101, 1000)))),)
        case _:
            return (old, Field(old.number, GROUP, b""), Field(old.number, GROUP_END, b""))


def nested(inner: Field, depth: int) -> Field:
    for _ in range(depth):
        inner = Field(inner.number, BYTES, inner.encode())
    return inner


@st.composite
def damaged(draw: st.DrawFn, body: bytes) -> bytes:
    """The bytes with a few changes that know nothing of their structure."""
    out = bytearray(body)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(out) - 1, 0)))
        match draw(st.integers(0, 5)):
            case 0:
                out[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case 1:
                if out:
                    out[at] ^= 1 << draw(st.integers(0, 7))
            case 2:
                del out[at:]
            case 3:
                out[at:at] = draw(st.binary(min_size=1, max_size=16))
            case 4:
                end = draw(st.integers(at, len(out)))
                out[at:at] = out[at:end]
            case _:
                del out[at : at + draw(st.integers(1, 16))]
    return bytes(out)
