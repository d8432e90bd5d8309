"""Protobuf and zstd bodies that start from good ones and are spoiled: hundreds here, 10,000 in `make test-all`."""

import time

import httpx
import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from openrl.protocol.codec import encode_forward_backward
from openrl.protocol.datum import Datum, ForwardBackwardInput, ProvenanceSpan, SparseCsr
from tests.gateway.raw_client import Owned, datum, result
from tests.gateway.refusals import Refusals
from tests.hostile.frames import bomb, wrong_frames
from tests.hostile.hostile_server import HostileServer
from tests.hostile.wire import damaged, decode, encode, mutated

MAX_SECONDS = 10.0


def valid_bodies(run_id: str) -> list[bytes]:
    """Dense, sparse, matrix targets, spans, settings of the loss, several datums."""
    plain = datum([1, 2, 3])
    targets = np.arange(3, dtype=np.int64)
    # Its rows are wrong already: what matters is that the parser goes there.
    sparse = SparseCsr(targets, crow_indices=targets, col_indices=targets, shape=(3, 1))
    spans = (ProvenanceSpan("request:0", 0, 2, True), ProvenanceSpan("request:0", 2, 1, False))
    with_spans = Datum(plain.tokens, plain.loss_inputs, spans, spans)
    columns = targets.reshape(3, 1).repeat(2, 1)
    matrix = Datum(plain.tokens, {"target_tokens": columns, "weights": np.ones((3, 2), np.float32)})
    odd = Datum(plain.tokens, {"target_tokens": sparse})
    forms = [((plain,), {}), ((plain, with_spans, matrix), {}), ((odd,), {}), ((plain,) * 20, {"clip_low": 0.8})]
    return [
        encode_forward_backward(ForwardBackwardInput(run_id, 50 + i, data, "cross_entropy", dict(config)))
        for i, (data, config) in enumerate(forms)
    ]


@st.composite
def bodies(draw: st.DrawFn, valid: list[bytes]) -> tuple[bytes, str | None]:
    """A spoiled body and its Content-Encoding."""
    body = draw(st.sampled_from(valid))
    match draw(st.integers(0, 3)):
        case 0:
            return draw(damaged(body)), None
        case 1:
            return draw(wrong_frames(body)), "zstd"
        case 2:
            return zstandard.compress(draw(damaged(body))), "zstd"
        case _:
            fields = decode(body)
            for _ in range(draw(st.integers(1, 3))):
                fields = draw(mutated(fields))
            return encode(fields), None


def fuzz(
    server: HostileServer, owned: Owned, refusals: Refusals, num_cases: int, *, is_the_same_each_time: bool = False
) -> None:
    valid = valid_bodies(owned.run_id)

    @settings(
        max_examples=num_cases, deadline=None, phases=[Phase.explicit, Phase.generate], database=None,
        derandomize=is_the_same_each_time,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )  # fmt: skip
    @given(case=bodies(valid))
    @example(case=(bomb(2**34), "zstd"))
    def check(case: tuple[bytes, str | None]) -> None:
        body, coding = case
        headers = {} if coding is None else {"Content-Encoding": coding}
        started = time.monotonic()
        answer = alice.post("forward_backward", content=body, headers=headers)
        assert time.monotonic() - started < MAX_SECONDS, body[:200]
        refusals.check(answer, body[:200], coding)

    with server.client("alice") as alice, server.bounded_memory():
        check()


def test_hundreds_of_spoiled_bodies(server: HostileServer, owned: Owned, refusals: Refusals, bob: httpx.Client):
    fuzz(server, owned, refusals, 300, is_the_same_each_time=True)
    assert {"malformed", "wrong_shape", "too_large"} <= refusals.codes
    assert result_of_tenant(bob)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_spoiled_bodies(server: HostileServer, owned: Owned, refusals: Refusals, bob: httpx.Client):
    fuzz(server, owned, refusals, 10_000)
    assert result_of_tenant(bob)


def result_of_tenant(client: httpx.Client) -> bool:
    """Whether another tenant is served as if nothing had happened."""
    session_id = client.post("create_session", json={}).json()["session_id"]
    model = {"session_id": session_id, "model_seq_id": 0, "base_model": "tiny/llama", "lora_config": {"rank": 8}}
    run_id = client.post("create_model", json=model).json()["model_id"]
    return result(client, "optim_step", {"model_id": run_id, "seq_id": 1, "adam_params": {}})["metrics"] == {
        "grad_norm": 1.5
    }
