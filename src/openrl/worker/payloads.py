"""Reads queued payloads as engine inputs; writes JSON results."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

import numpy as np
from pydantic import ValidationError

from openrl.errors import InvalidRequest
from openrl.protocol.codec import decode_forward_backward
from openrl.protocol.custom_loss import LOSS_FILE, CustomLoss, custom_loss_key, parse_custom_loss, read_loss_id
from openrl.protocol.datum import ForwardBackwardInput, Int64Array, SparseCsr
from openrl.protocol.losses import CUSTOM
from openrl.protocol.wire import (
    AdamParamsWire,
    LoadWeightsPayload,
    OptimStepRequest,
    SampleRequest,
    SamplingParams,
    SaveWeightsExternalRequest,
    SaveWeightsForSamplerRequest,
    SaveWeightsRequest,
    TensorData,
    WireModel,
    read_optimizer_params,
)
from openrl.rpc.messages import WorkItem
from openrl.sampling.base import SampleJob, SamplingOptions
from openrl.store.base import Blobs
from openrl.training.base import AdamParams, DimuonParams, OptimStep
from openrl.worker.patience import read_patiently

WireT = TypeVar("WireT", bound=WireModel)
_CACHED_LOSSES = 64


class PayloadReader:
    """Everything raises InvalidRequest on a payload that admission should not have let in, NotFound on a lost one."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._custom_loss = lru_cache(_CACHED_LOSSES)(self._read_custom_loss)

    def forward_backward(self, item: WorkItem) -> ForwardBackwardInput:
        """The datums of one request and their loss."""
        request = decode_forward_backward(self._get(item))
        if request.loss_fn != CUSTOM:
            return request
        key = custom_loss_key(item.tenant_id, read_loss_id(request.loss_fn_config))
        return replace(request, custom_loss=self._custom_loss(key))

    def optim_step(self, item: WorkItem) -> OptimStep:
        """One optimizer step, of whichever family."""
        params = read_optimizer_params(self._read(item, OptimStepRequest))
        if isinstance(params, AdamParamsWire):
            return OptimStep(item.run_id, AdamParams(**params.model_dump()))
        return OptimStep(item.run_id, DimuonParams(params.learning_rate, params.beta1, params.grad_clip_norm))

    def load_weights(self, item: WorkItem) -> LoadWeightsPayload:
        """Which checkpoint to load, already resolved."""
        return self._read(item, LoadWeightsPayload)

    def save_weights(self, item: WorkItem) -> SaveWeightsRequest:
        """Name and lifetime of a training checkpoint."""
        return self._read(item, SaveWeightsRequest)

    def save_weights_for_sampler(self, item: WorkItem) -> SaveWeightsForSamplerRequest:
        """Name and lifetime of a sampler checkpoint, or the sampling session it is for."""
        return self._read(item, SaveWeightsForSamplerRequest)

    def save_weights_external(self, item: WorkItem) -> SaveWeightsExternalRequest:
        """Name, lifetime and readers of files for other tools."""
        return self._read(item, SaveWeightsExternalRequest)

    def sample_job(self, item: WorkItem) -> SampleJob:
        """A sample request as the engine takes it."""
        assert item.sampler is not None, "the scheduler sends sample requests with their sampler"
        request = self._read(item, SampleRequest)
        tokens = [token for chunk in request.prompt.chunks for token in chunk.tokens or ()]
        target = request.target_prompt_logprobs
        return SampleJob(
            request_id=item.request_id,
            sampler=item.sampler,
            prompt=np.asarray(tokens, np.int32),
            num_samples=request.num_samples,
            options=sampling_options(request.sampling_params),
            wants_prompt_logprobs=bool(request.prompt_logprobs),
            prompt_logprobs_last_n=request.prompt_logprobs_last_n,
            topk_prompt_logprobs=request.topk_prompt_logprobs,
            topk_sample_logprobs=request.topk_sample_logprobs,
            prompt_alt_tokens_k=request.prompt_alt_tokens_k,
            target_prompt_tokens=None if target is None else int64_tensor(target),
            tenant_id=item.tenant_id,
            trace_context=item.trace_context,
        )

    def _read_custom_loss(self, key: str) -> CustomLoss:
        return parse_custom_loss(read_patiently(lambda: self._blobs.get_object(key))[LOSS_FILE])

    def _get(self, item: WorkItem) -> bytes:
        return read_patiently(lambda: self._blobs.get_payload(item.payload_ref))

    def _read(self, item: WorkItem, model: type[WireT]) -> WireT:
        try:
            return model.model_validate_json(self._get(item))
        except ValidationError as error:
            raise InvalidRequest(f"{item.kind}: the stored body is malformed: {error}") from error


def sampling_options(params: SamplingParams) -> SamplingOptions:
    """Stops by their type: absent means end of sequence, `[]` means nothing stops."""
    stop = (params.stop,) if isinstance(params.stop, str) else params.stop
    return SamplingOptions(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        seed=params.seed,
        stop_strings=tuple(each for each in stop or () if isinstance(each, str)),
        stop_token_ids=tuple(each for each in stop or () if isinstance(each, int)),
        stops_at_eos=stop is None,
    )


def int64_tensor(tensor: TensorData) -> Int64Array | SparseCsr:
    """The array of a TensorData, dense or CSR; raises InvalidRequest where data and shape disagree."""
    values = np.asarray(tensor.data, np.int64)
    shape = tensor.shape or values.shape
    if tensor.sparse_crow_indices is None or tensor.sparse_col_indices is None:
        if int(np.prod(shape)) != values.size:
            raise InvalidRequest(f"{values.size} values do not fill shape {list(shape)}")
        return values.reshape(shape)
    if len(shape) != 2:
        raise InvalidRequest(f"a sparse tensor has 2 dimensions, not shape {list(shape)}")
    return SparseCsr(
        values=values,
        crow_indices=np.asarray(tensor.sparse_crow_indices, np.int64),
        col_indices=np.asarray(tensor.sparse_col_indices, np.int64),
        shape=(shape[0], shape[1]),
    )


def encode_json(result: Mapping[str, object]) -> bytes:
    """The result of every other kind; raises ValueError on NaN and infinities, which JSON cannot say."""
    return json.dumps(result, allow_nan=False).encode()
