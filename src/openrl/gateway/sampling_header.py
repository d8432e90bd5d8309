"""Sampling parameters that come in a header: the SDK drops those that its own class does not name."""

from openrl.errors import InvalidRequest
from openrl.gateway.body import parse_json
from openrl.gateway.context import Call
from openrl.gateway.headers import header
from openrl.protocol.wire import SampleRequest, SamplingParamsHeader

NAME = "X-OpenRL-Sampling-Params"
_KEY = NAME.lower().encode()


def with_header_params(call: Call, body: bytes) -> tuple[SampleRequest, bytes]:
    """The request in `body` with what the header adds, and a body that says it all; raises InvalidRequest.

    What the body names itself stays.
    """
    request = parse_json(body, SampleRequest)
    text = header(call.request, _KEY)
    if text is None:
        return request, body
    params = request.sampling_params
    added = _read(text).model_dump(exclude_unset=True, exclude=params.model_fields_set)
    request = request.model_copy(update={"sampling_params": params.model_copy(update=added)})
    return request, request.model_dump_json(exclude_unset=True).encode()


def _read(text: str) -> SamplingParamsHeader:
    try:
        return parse_json(text.encode(), SamplingParamsHeader)
    except InvalidRequest as error:
        raise InvalidRequest(f"header {NAME}: {error}", error.code, value=error.value, bound=error.bound) from None
