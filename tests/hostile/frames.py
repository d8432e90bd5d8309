"""Zstandard frames written by hand, and wrongly (RFC 8878)."""

import struct

import zstandard
from hypothesis import strategies as st

from tests.hostile.wire import damaged

MAGIC = 0xFD2FB528
_BLOCK_BYTES = 2**17


def header(content_size: int | None, window_exponent: int = 7, *, dictionary_id: int | None = None) -> bytes:
    """Magic number, descriptor, window, dictionary id, content size; the window is 2**(10 + exponent) bytes."""
    descriptor = (0b11 << 6 if content_size is not None else 0) | (0b11 if dictionary_id is not None else 0)
    out = struct.pack("<IBB", MAGIC, descriptor, (window_exponent & 31) << 3)
    if dictionary_id is not None:
        out += struct.pack("<I", dictionary_id)
    return out if content_size is None else out + struct.pack("<Q", content_size)


def repeated(num_bytes: int, byte: int = 0) -> bytes:
    """Blocks that say a byte so often: 4 bytes for each 128 KiB."""
    blocks: list[bytes] = []
    while num_bytes > 0:
        size = min(num_bytes, _BLOCK_BYTES)
        num_bytes -= size
        blocks.append(struct.pack("<I", size << 3 | 1 << 1 | (num_bytes <= 0))[:3] + bytes([byte]))
    return b"".join(blocks)


def bomb(num_bytes: int, declared: int | None = None, window_exponent: int = 7) -> bytes:
    """A small frame of large content."""
    return header(declared, window_exponent) + repeated(num_bytes)


def skippable(declared: int, content: bytes = b"") -> bytes:
    return struct.pack("<II", 0x184D2A50, declared) + content


@st.composite
def wrong_frames(draw: st.DrawFn, body: bytes) -> bytes:
    """A compressed body with something wrong in it, or odd."""
    whole = zstandard.compress(body)
    match draw(st.integers(0, 9)):
        case 0:
            return bomb(draw(st.sampled_from((2**20, 2**26, 2**28, 2**30, 2**34))))
        case 1:
            size = draw(st.sampled_from((0, 1, len(body), 2**20)))
            return bomb(size, declared=draw(st.sampled_from((0, 1, 2**31, 2**40, 2**63, 2**64 - 1))))
        case 2:
            return bomb(2**18, window_exponent=draw(st.integers(14, 31)))
        case 3:
            return whole * draw(st.integers(2, 50))
        case 4:
            return skippable(draw(st.sampled_from((0, 1, 2**31, 2**32 - 1)))) + whole
        case 5:
            return header(len(body), dictionary_id=draw(st.integers(1, 2**32 - 1))) + repeated(len(body))
        case 6:
            dictionary = zstandard.ZstdCompressionDict(body * 4, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
            return zstandard.ZstdCompressor(dict_data=dictionary).compress(body)
        case 7:
            return zstandard.compress(whole)
        case 8:
            checked = zstandard.ZstdCompressor(write_checksum=True).compress(body)
            return checked[:-1] + bytes([checked[-1] ^ 0xFF])
        case _:
            return draw(damaged(whole))
