from typing import Any

import pytest
from pydantic import ValidationError
from tinker import types
from tinker.types.sample_request import SampleRequest as SdkSampleRequest

from openrl.protocol.wire import LoraConfig, SampleRequest, SamplingParams


def test_a_sample_request_of_the_sdk_is_read_with_its_large_numbers():
    sdk = SdkSampleRequest(
        num_samples=2,
        prompt=types.ModelInput.from_ints([1, 2]),
        sampling_params=types.SamplingParams(max_tokens=4, seed=2**64 - 1, stop=["a"]),
        sampling_session_id="s:sample:0",
        seq_id=792706723000000001,
    )
    request = SampleRequest.model_validate_json(sdk.model_dump_json(exclude_none=True))
    assert (request.seq_id, request.sampling_params.seed) == (792706723000000001, 2**64 - 1)
    assert request.prompt.chunks[0].tokens == (1, 2)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [("null", None), ("[]", ()), ('"a"', "a"), ('["a", "b"]', ("a", "b")), ("[1, 2]", (1, 2))],
)
def test_the_forms_of_stop_stay_apart(stop: str, expected: Any):
    assert SamplingParams.model_validate_json(f'{{"stop": {stop}}}').stop == expected


@pytest.mark.parametrize("rank", ["1.5", "true", '"8"', "null"])
def test_integers_are_integers(rank: str):
    with pytest.raises(ValidationError):
        LoraConfig.model_validate_json(f'{{"rank": {rank}}}')


def test_unknown_fields_are_ignored():
    assert LoraConfig.model_validate_json('{"rank": 8, "colour": "red"}').rank == 8
