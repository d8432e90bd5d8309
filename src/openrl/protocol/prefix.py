"""Finds the address of a forward_backward in the first bytes of a body that is too large to take.

Clients write fields in order of their numbers, so run and seq_id come first. A refused request has to use up
its number, or the run waits for it for ever.
"""

_RUN_ID_TAG = 0x0A  # field 1, length-delimited
_SEQ_ID_TAG = 0x10  # field 2, varint


def read_address(prefix: bytes) -> tuple[str, int] | None:
    """Run id and seq_id, or None where the bytes do not start with them."""
    if not prefix or prefix[0] != _RUN_ID_TAG:
        return None
    length, start = _varint(prefix, 1)
    end = start + length
    if not 0 < length <= 256 or end >= len(prefix) or prefix[end] != _SEQ_ID_TAG:
        return None
    seq_id, stop = _varint(prefix, end + 1)
    if stop > len(prefix) or not 0 < seq_id < 2**31:
        return None
    try:
        return prefix[start:end].decode(), seq_id
    except UnicodeDecodeError:
        return None


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at `position` and where it ends; past the end of `data` when it is cut off."""
    value = 0
    for shift, byte in enumerate(data[position : position + 10]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, position + shift + 1
    return value, len(data) + 1
