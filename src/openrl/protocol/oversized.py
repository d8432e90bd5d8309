"""Finds the address of a pass in a body that is too large to take, so that the refusal can use up its number.

Else the run would wait for that number for ever. In protobuf, clients write fields in order of their numbers, so run
and seq_id come first; in JSON they come last.
"""

import json
import re

_RUN_ID_TAG = 0x0A  # field 1, length-delimited
_SEQ_ID_TAG = 0x10  # field 2, varint
_JSON_END = re.compile(rb'"model_id"\s*:\s*"[^"\\]{1,256}"\s*,\s*"seq_id"\s*:\s*[1-9]\d{0,8}\s*\}\s*$')
MAX_END_BYTES = 1024
"""Of a JSON body, enough to hold its address."""
MAX_ADDRESS_BYTES = 1024
"""Of a protobuf body, enough to hold it."""


def read_address(prefix: bytes) -> tuple[str, int] | None:
    """Run id and seq_id, or None where a protobuf body's first bytes are not those."""
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


def read_json_address(end: bytes) -> tuple[str, int] | None:
    """Run id and seq_id, or None where the last bytes of a JSON body do not end with them."""
    found = _JSON_END.search(end)
    if found is None:
        return None
    try:
        fields = json.loads(b"{" + found[0])
    except UnicodeDecodeError:
        return None
    return fields["model_id"], fields["seq_id"]


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at `position` and where it ends; past the end of `data` when it is cut off."""
    value = 0
    for shift, byte in enumerate(data[position : position + 10]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, position + shift + 1
    return value, len(data) + 1
