"""The last word on bad sample requests: pure checks, each message names value and bound."""

import math

import numpy as np

from openrl.catalog import BaseModelInfo
from openrl.config import GatewayConfig
from openrl.errors import BadValue, InvalidRequest
from openrl.protocol.codec import check_csr
from openrl.protocol.losses import MAX_TARGETS_PER_TOKEN
from openrl.protocol.wire import SampleRequest, SamplingParams, TensorData

MAX_TOPK = 1024
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1024
ADDED_BOUNDS = {
    "min_p": (0, 1),
    "repetition_penalty": (0.1, 10),
    "presence_penalty": (-2, 2),  # as in OpenAI's API, and the next
    "frequency_penalty": (-2, 2),
}


def admit_sample(request: SampleRequest, model: BaseModelInfo, config: GatewayConfig) -> int:
    """The most tokens it can cost: prompt, plus samples times the longest answer. Raises InvalidRequest."""
    num_prompt = _check_prompt(request, model)
    if not 1 <= request.num_samples <= config.max_samples:
        raise BadValue("num_samples", request.num_samples, f"between 1 and {config.max_samples}")
    max_tokens = _check_length(request.sampling_params, num_prompt, model)
    _check_params(request.sampling_params, model)
    _check_prompt_options(request, num_prompt, model)
    return num_prompt + request.num_samples * max_tokens


def _check_prompt(request: SampleRequest, model: BaseModelInfo) -> int:
    num_prompt = 0
    for i, chunk in enumerate(request.prompt.chunks):
        if chunk.type != "encoded_text" or chunk.tokens is None:
            raise BadValue(f"prompt chunk {i}: type", chunk.type, "encoded_text", "not_supported")
        if chunk.tokens and (min(chunk.tokens) < 0 or max(chunk.tokens) >= model.vocab_size):
            bad = next(token for token in chunk.tokens if not 0 <= token < model.vocab_size)
            raise BadValue("prompt token", bad, f"in the vocabulary: 0 to {model.vocab_size - 1}", "outside_vocabulary")
        num_prompt += len(chunk.tokens)
    if num_prompt == 0:
        raise BadValue("number of prompt tokens", 0, "at least 1")
    return num_prompt


def _check_length(params: SamplingParams, num_prompt: int, model: BaseModelInfo) -> int:
    rest = model.context_length - num_prompt
    max_tokens = rest if params.max_tokens is None else params.max_tokens
    if max_tokens < 1 and params.max_tokens is not None:
        raise BadValue("max_tokens", max_tokens, "at least 1")
    if max_tokens < 1 or max_tokens > rest:
        asked = "at least 1 token" if params.max_tokens is None else f"max_tokens {max_tokens}"
        limit = f"the context length {model.context_length} of {model.name}"
        message = f"prompt of {num_prompt} tokens plus {asked} is over {limit}; shorten one of them"
        total = num_prompt + (params.max_tokens or 1)
        raise InvalidRequest(message, "context_exceeded", value=total, bound=f"at most {limit}")
    return max_tokens


def _check_params(params: SamplingParams, model: BaseModelInfo) -> None:
    if params.temperature < 0:
        raise BadValue("temperature", params.temperature, "at least 0")
    if params.top_k != -1 and params.top_k < 1:
        raise BadValue("top_k", params.top_k, "at least 1, or -1 for all")
    if not 0 <= params.top_p <= 1:
        raise BadValue("top_p", params.top_p, "between 0 and 1")
    _check_added_params(params)
    stops = (params.stop,) if isinstance(params.stop, str) else params.stop or ()
    if len(stops) > MAX_STOPS:
        raise BadValue("number of stops", len(stops), f"at most {MAX_STOPS}")
    for stop in stops:
        _check_stop(stop, model)


def _check_added_params(params: SamplingParams) -> None:
    for name, (least, most) in ADDED_BOUNDS.items():
        value: float = getattr(params, name)
        if not least <= value <= most:
            raise BadValue(name, value, f"between {least} and {most}")


def _check_stop(stop: str | int, model: BaseModelInfo) -> None:
    if isinstance(stop, int):
        if not 0 <= stop < model.vocab_size:
            raise BadValue("stop token", stop, f"in the vocabulary: 0 to {model.vocab_size - 1}", "outside_vocabulary")
    elif not 1 <= len(stop) <= MAX_STOP_CHARACTERS:
        raise BadValue("characters of a stop string", len(stop), f"1 to {MAX_STOP_CHARACTERS}")


def _check_prompt_options(request: SampleRequest, num_prompt: int, model: BaseModelInfo) -> None:
    for name in ("topk_prompt_logprobs", "topk_sample_logprobs", "prompt_alt_tokens_k"):
        k: int = getattr(request, name)
        bound = min(MAX_TOPK, model.vocab_size)
        if not 0 <= k <= bound:
            raise BadValue(name, k, f"between 0 and {bound}")
    last_n = request.prompt_logprobs_last_n
    if last_n is not None:
        if not request.prompt_logprobs:
            raise InvalidRequest("prompt_logprobs_last_n needs prompt_logprobs=true", "missing")
        if not 1 <= last_n <= num_prompt - 1:
            raise BadValue("prompt_logprobs_last_n", last_n, f"between 1 and {num_prompt - 1}")
    if request.prompt_alt_tokens_k and num_prompt < 2:
        raise BadValue("number of prompt tokens", num_prompt, "at least 2 for prompt_alt_tokens_k")
    if request.target_prompt_logprobs is not None:
        _check_targets(request.target_prompt_logprobs, num_prompt, model)


def _check_targets(tensor: TensorData, num_prompt: int, model: BaseModelInfo) -> None:
    where = "target_prompt_logprobs"
    if tensor.dtype != "int64" or any(isinstance(value, float) for value in tensor.data):
        raise BadValue(f"{where}: dtype", tensor.dtype, "int64, of whole numbers", "wrong_dtype")
    shape = tensor.shape or ()
    if len(shape) != 2 or shape[0] != num_prompt - 1 or not 1 <= shape[1] <= MAX_TARGETS_PER_TOKEN:
        bound = f"[{num_prompt - 1}, K] with K between 1 and {MAX_TARGETS_PER_TOKEN}"
        raise BadValue(f"{where}: shape", list(shape)[:8], bound, code="wrong_shape")
    if tensor.data and (min(tensor.data) < -1 or max(tensor.data) >= model.vocab_size):
        raise BadValue(
            f"{where}: values",
            [min(tensor.data), max(tensor.data)],
            f"-1 to {model.vocab_size - 1}",
            "outside_vocabulary",
        )
    crow, col = tensor.sparse_crow_indices, tensor.sparse_col_indices
    if crow is None and col is None:
        if len(tensor.data) != math.prod(shape):
            raise BadValue(
                f"{where}: number of values", len(tensor.data), f"that of shape {list(shape)}", "wrong_shape"
            )
    elif crow is None or col is None:
        raise InvalidRequest(f"{where}: sparse_crow_indices and sparse_col_indices come together", "missing")
    else:
        check_csr(_indices(crow, where), _indices(col, where), len(tensor.data), shape, where)


def _indices(values: tuple[int, ...], where: str) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    if values and not 0 <= min(values) <= max(values) < 2**31:
        raise BadValue(f"{where}: indices", [min(values), max(values)], f"0 to {2**31 - 1}", "wrong_shape")
    return np.asarray(values, np.int64)
