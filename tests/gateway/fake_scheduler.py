"""Finishes every request at once, with results of the right form and predictable numbers."""

import asyncio
import json
from collections.abc import Callable

import numpy as np

from openrl.protocol.codec import (
    decode_forward_backward,
    encode_forward_backward_output,
    encode_sample_response,
)
from openrl.protocol.datum import DenseArray
from openrl.protocol.paths import CheckpointPath, sampling_session_id
from openrl.protocol.results import ForwardBackwardResult, SampledSequence, SampleResult
from openrl.protocol.runs import CheckpointKind
from openrl.protocol.wire import (
    LoadWeightsPayload,
    SampleRequest,
    SaveWeightsExternalRequest,
    SaveWeightsForSamplerRequest,
    SaveWeightsRequest,
)
from openrl.store.base import Blobs, CheckpointRow, FinishedRequest, RequestRow, RunRow, SamplerRow, Store

ADAPTER_CONFIG = b'{"r": 8}'
ADAPTER_MODEL = b"weights" * 1000


class FakeScheduler:
    """A scheduler and its worker in one task; `log` holds what ran, in order of arrival."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self.store = store
        self.blobs = blobs
        self.log: list[RequestRow] = []
        self.loads: list[LoadWeightsPayload] = []
        self.is_holding = asyncio.Event()  # set: samples stay queued
        self.fails: Callable[[RequestRow], str | None] = lambda _: None

    async def run(self) -> None:
        async for group in self.store.new_requests():
            finished: list[FinishedRequest] = []
            for row in group:
                if row.state == "queued" and not (row.kind == "sample" and self.is_holding.is_set()):
                    self.log.append(row)
                    finished.append(await self._finish(row))
            if finished:
                await self.store.finish(finished)

    async def _finish(self, row: RequestRow) -> FinishedRequest:
        error = self.fails(row)
        if error is not None:
            return FinishedRequest(row.request_id, "failed", row.created_at, error=error, category="user")
        payload = self.blobs.get_payload(row.payload_ref)
        match row.kind:
            case "sample":
                return self._done(row, sample(payload))
            case "forward_backward" | "forward":
                return self._done(row, forward_backward(payload))
            case "optim_step":
                return self._done(row, json.dumps({"metrics": {"grad_norm": 1.5}}).encode())
            case "create_model" | "unload_model":
                return self._done(row, json.dumps({"model_id": row.run_id}).encode())
            case "load_weights":
                self.loads.append(LoadWeightsPayload.model_validate_json(payload))
                return self._done(row, json.dumps({"path": self.loads[-1].path}).encode())
            case "save_weights":
                request = SaveWeightsRequest.model_validate_json(payload)
                return await self._saved(row, "weights", request.path, request.user_metadata)
            case "save_weights_external":
                external = SaveWeightsExternalRequest.model_validate_json(payload)
                return await self._saved(row, "external_weights", external.path, None)
            case "save_weights_for_sampler":
                save = SaveWeightsForSamplerRequest.model_validate_json(payload)
                if save.path is not None:
                    return await self._saved(row, "sampler_weights", save.path, save.user_metadata)
                assert save.sampling_session_seq_id is not None
                return await self._sampler(row, save.sampling_session_seq_id)
            case "create_custom_loss":
                raise AssertionError("its future has ended when it is answered")

    def _done(
        self,
        row: RequestRow,
        result: bytes,
        checkpoint: CheckpointRow | None = None,
        sampler: SamplerRow | None = None,
    ) -> FinishedRequest:
        ref = self.blobs.put_payloads([result])[0]
        return FinishedRequest(
            row.request_id, "done", row.created_at, result_ref=ref, checkpoint=checkpoint, sampler=sampler
        )

    async def _saved(
        self, row: RequestRow, kind: CheckpointKind, name: str, metadata: dict[str, str] | None
    ) -> FinishedRequest:
        run = await self.store.get_run(row.tenant_id, row.run_id)
        key = f"checkpoints/{row.run_id}/{kind}/{name}/{row.request_id}"
        size = self.blobs.put_object(key, adapter_files(run))
        checkpoint = CheckpointRow(
            row.run_id, kind, name, row.tenant_id, key, size, row.created_at, user_metadata=metadata
        )
        path = str(CheckpointPath(row.run_id, kind, name))
        return self._done(row, json.dumps({"path": path}).encode(), checkpoint=checkpoint)

    async def _sampler(self, row: RequestRow, seq_id: int) -> FinishedRequest:
        run = await self.store.get_run(row.tenant_id, row.run_id)
        key = f"checkpoints/{row.run_id}/sampler_weights/{row.request_id}"
        self.blobs.put_object(key, adapter_files(run))
        sampler = SamplerRow(
            sampler_id=sampling_session_id(row.session_id, seq_id),
            tenant_id=row.tenant_id,
            session_id=row.session_id,
            base_model=row.base_model,
            created_at=row.created_at,
            sampling_session_seq_id=seq_id,
            adapter_key=key,
            is_ephemeral=True,
        )
        result = json.dumps({"sampling_session_id": sampler.sampler_id}).encode()
        return self._done(row, result, sampler=sampler)


def adapter_files(run: RunRow) -> dict[str, bytes]:
    spec = run.spec
    manifest = {
        "format": 1,
        "base_model": spec.base_model,
        "rank": spec.rank,
        "seed": spec.seed,
        "train_attn": spec.train_attn,
        "train_mlp": spec.train_mlp,
        "train_unembed": spec.train_unembed,
        "has_optimizer": True,
    }
    return {
        "openrl.json": json.dumps(manifest).encode(),
        "adapter_config.json": ADAPTER_CONFIG,
        "adapter_model.safetensors": ADAPTER_MODEL,
        "optimizer.safetensors": b"moments",
    }


def sample(payload: bytes) -> bytes:
    """Every sample repeats the prompt's first token; log-probabilities are -0.5."""
    request = SampleRequest.model_validate_json(payload)
    tokens = [token for chunk in request.prompt.chunks for token in chunk.tokens or ()]
    length = request.sampling_params.max_tokens or 4
    sequence = SampledSequence("length", np.full(length, tokens[0], np.int32), np.full(length, -0.5, np.float32))
    prompt_logprobs = None
    if request.prompt_logprobs:
        prompt_logprobs = np.full(len(tokens), -0.25, np.float32)
        prompt_logprobs[0] = np.nan
    return encode_sample_response(SampleResult((sequence,) * request.num_samples, prompt_logprobs))


def forward_backward(payload: bytes) -> bytes:
    """Log-probabilities have the targets' shape and count upwards from the datum's first token."""
    request = decode_forward_backward(payload)
    outputs: list[dict[str, DenseArray]] = [
        {"logprobs": -_ramp(datum.loss_inputs["target_tokens"].shape, int(datum.tokens[0]))} for datum in request.data
    ]
    metrics = {"loss:sum": float(len(request.data)), "tokens:sum": float(sum(d.num_tokens for d in request.data))}
    return encode_forward_backward_output(ForwardBackwardResult(tuple(outputs), metrics))


def _ramp(shape: tuple[int, ...], start: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    size = int(np.prod(shape))
    return np.arange(start, start + size, dtype=np.float32).reshape(shape)
