import json
import time

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from openrl.errors import InvalidRequest
from openrl.protocol import tinker_pb2 as pb
from openrl.protocol.body_parts import _REQUEST, MAX_JSON_COST, MAX_PARTS, _count, check_parts, json_cost
from openrl.protocol.codec import decode_run_and_seq_id, encode_forward_backward
from openrl.protocol.datum import Datum, ForwardBackwardInput, LossInput, ProvenanceSpan


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def whole(num_datums: int, num_tokens: int) -> bytes:
    tokens = np.arange(num_tokens, dtype=np.int32)
    inputs: dict[str, LossInput] = {
        "target_tokens": tokens.astype(np.int64),
        "weights": np.ones(num_tokens, np.float32),
    }
    spans = (ProvenanceSpan("s", 0, num_tokens, True),)
    datum = Datum(tokens, inputs, spans, spans)
    return encode_forward_backward(ForwardBackwardInput("a:train:0", 3, (datum,) * num_datums, "cross_entropy"))


@pytest.mark.parametrize(("num_datums", "num_tokens"), [(1, 0), (1, 10), (4096, 8), (3, 2**18)])
def test_bodies_of_clients_pass(num_datums: int, num_tokens: int):
    check_parts(whole(num_datums, num_tokens))


ADDRESS = field(1, b"a:train:0") + b"\x10\x03"
EXPLOSIONS = {
    "datums": field(3, b"") * MAX_PARTS,
    "chunks": field(3, field(1, b"") * MAX_PARTS),
    "inputs": field(3, field(2, b"") * MAX_PARTS),
    "spans": field(3, field(3, b"") * MAX_PARTS),
    "shape": field(3, field(2, field(1, b"x") + field(2, field(4, bytes(MAX_PARTS))))),
    "settings": field(5, b"") * MAX_PARTS,
    "unknown": field(100, b"") * MAX_PARTS,
}


@pytest.mark.parametrize("body", EXPLOSIONS.values(), ids=EXPLOSIONS.keys())
def test_bodies_of_too_many_parts_are_refused_quickly_and_keep_their_address(body: bytes):
    started = time.process_time()
    with pytest.raises(InvalidRequest, match=f"at most {MAX_PARTS}"):
        check_parts(ADDRESS + body)
    assert decode_run_and_seq_id(ADDRESS + body) == ("a:train:0", 3)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (b"\x1b", "wire type 3"),
        (b"\x1a\xff\xff\xff\xff\x0f", "bytes ends after"),
        (b"\x1a" + b"\xff" * 10, "cut off, or longer"),
        (b"\x80", "cut off"),
        (b"\x0d\x00", "cut off"),
    ],
)
def test_damaged_bodies_are_refused(damage: bytes, part: str):
    with pytest.raises(InvalidRequest, match=part):
        check_parts(whole(1, 2**16) + damage)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_what_the_parser_takes_is_counted_to_its_end_and_what_is_refused_it_refuses_too(data: st.DataObject):
    body = bytearray(whole(2, 3))
    for _ in range(data.draw(st.integers(0, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        _count(bytes(body), _REQUEST)
    except InvalidRequest as refusal:
        if "wire type" not in str(refusal):  # groups are valid, and in no body of a client
            with pytest.raises(DecodeError):
                pb.ForwardBackwardRequest().ParseFromString(bytes(body))


def test_a_prompt_of_a_million_tokens_may_be_read_and_bodies_that_explode_may_not():
    assert json_cost(json.dumps({"tokens": [151_000] * 1_000_000}).encode()) < MAX_JSON_COST
    for part in (b"[],", b"{},", b'"",', b'"a":1,', b"1,"):
        assert json_cost(part * (2**25 // len(part))) > MAX_JSON_COST
