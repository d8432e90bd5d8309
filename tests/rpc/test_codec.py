import contextlib
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrl.errors import InvalidRequest, PayloadTooLarge
from openrl.rpc.codec import MAX_FRAME_BYTES, FrameReader, Message, decode_body, encode_frame
from openrl.rpc.messages import CloseRun, ExecuteDone, RunLost, WorkerDraining, WorkerReady

from .strategies import messages


@given(messages())
def test_every_message_survives_the_round_trip(message: Message):
    assert decode_body(encode_frame(message)[4:]) == message


@given(st.lists(messages(), max_size=5), st.integers(1, 40))
def test_messages_come_out_whole_however_the_bytes_are_cut(sent: list[Message], piece: int):
    stream = b"".join(encode_frame(message) for message in sent)
    frames = FrameReader()
    received = [m for i in range(0, len(stream), piece) for m in frames.feed(stream[i : i + piece])]
    assert received == sent


@given(st.binary(max_size=60))
def test_random_bytes_are_refused_or_decoded_but_never_crash(data: bytes):
    with contextlib.suppress(InvalidRequest):
        decode_body(data)


def test_an_unknown_type_is_named():
    with pytest.raises(InvalidRequest, match="'Surprise' is unknown"):
        decode_body(msgspec.msgpack.encode(("Surprise", {})))


def test_a_wrong_field_type_is_refused():
    with pytest.raises(InvalidRequest, match="Expected `str`"):
        decode_body(msgspec.msgpack.encode(("CloseRun", {"run_id": 3})))


def test_an_announced_length_over_the_limit_is_refused_before_it_is_collected():
    with pytest.raises(PayloadTooLarge):
        list(FrameReader().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "big")))


def test_a_message_over_the_limit_is_refused_at_the_sender():
    with pytest.raises(PayloadTooLarge, match="RunLost"):
        encode_frame(RunLost("run", "x" * MAX_FRAME_BYTES))


def test_types_with_equal_fields_are_told_apart():
    assert isinstance(decode_body(encode_frame(CloseRun("run"))[4:]), CloseRun)
    assert isinstance(decode_body(encode_frame(ExecuteDone(1, ()))[4:]), ExecuteDone)


OLD_READY = {"worker_id": "w", "base_models": ("tiny",), "max_pass_tokens": 8, "max_sequences": 4}
"""As a worker says it that knows of no pools."""


def test_a_worker_of_the_version_before_is_in_the_default_pool():
    ready = decode_body(msgspec.msgpack.encode(("WorkerReady", OLD_READY)))
    assert ready == WorkerReady("w", ("tiny",), 8, 4)
    assert isinstance(ready, WorkerReady)
    assert (ready.pool, ready.role, ready.is_draining, ready.knows_draining) == ("default", "both", False, False)
    assert decode_body(msgspec.msgpack.encode(("WorkerDraining", {}))) == WorkerDraining(stays=False)


def test_a_scheduler_of_the_version_before_reads_what_it_knows():
    @dataclass(frozen=True)
    class WorkerReadyBefore:
        worker_id: str
        base_models: tuple[str, ...]
        max_pass_tokens: int
        max_sequences: int

    sent = WorkerReady("w", ("tiny",), 8, 4, pool="p", role="train", is_draining=True, knows_draining=True)
    _, fields = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw]).decode(encode_frame(sent)[4:])
    assert msgspec.msgpack.Decoder(WorkerReadyBefore).decode(fields) == WorkerReadyBefore("w", ("tiny",), 8, 4)
