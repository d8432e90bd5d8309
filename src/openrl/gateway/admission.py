"""The last word on bad training input: pure checks, each message names value and bound."""

import math

import numpy as np

from openrl.catalog import BaseModelInfo
from openrl.config import GatewayConfig
from openrl.errors import BadValue, InvalidRequest
from openrl.protocol.custom_loss import custom_loss_spec
from openrl.protocol.datum import Datum, DenseArray, ForwardBackwardInput, LossInput, SparseCsr
from openrl.protocol.losses import (
    MAX_TARGETS_PER_TOKEN,
    LossInputSpec,
    LossSpec,
    resolve_loss,
    resolve_loss_settings,
)
from openrl.protocol.runs import OptimizerFamily
from openrl.protocol.wire import (
    AdamParamsWire,
    AdapterManifest,
    DimuonParamsWire,
    LoraConfig,
    OptimizerConfig,
    OptimStepRequest,
    SaveWeightsForSamplerRequest,
    read_optimizer_params,
)

ABSENT_TARGET = -1
_TARGETS = "target_tokens"


def admit_forward_backward(request: ForwardBackwardInput, model: BaseModelInfo, config: GatewayConfig) -> int:
    """The number of tokens to compute; raises InvalidRequest for what the engine could not take as it stands."""
    if request.custom_loss is not None:
        spec = custom_loss_spec(request.custom_loss)
    else:
        spec = resolve_loss(request.loss_fn)
        resolve_loss_settings(request.loss_fn, request.loss_fn_config)
    if not 1 <= len(request.data) <= config.max_datums:
        raise BadValue("number of datums", len(request.data), f"between 1 and {config.max_datums}")
    for i, datum in enumerate(request.data):
        _check_datum(datum, f"datum {i}", spec, model)
    return sum(datum.num_tokens for datum in request.data)


def _check_datum(datum: Datum, where: str, spec: LossSpec, model: BaseModelInfo) -> None:
    if not 1 <= datum.num_tokens <= model.context_length:
        bound = f"between 1 and the context length {model.context_length} of {model.name}"
        raise BadValue(f"{where}: number of tokens", datum.num_tokens, bound, "context_exceeded")
    _check_ids(datum.tokens, 0, model, f"{where}: tokens")
    missing = sorted(spec.required.keys() - datum.loss_inputs.keys())
    if missing:
        message = f"{where} lacks {', '.join(missing)}, which loss_fn {spec.name!r} needs"
        raise InvalidRequest(message, "missing", bound=f"inputs {', '.join(spec.required)}")
    known = spec.inputs()
    unknown = sorted(datum.loss_inputs.keys() - known.keys())
    if unknown and not spec.ignores_others:
        takes, shown = ", ".join(known), ", ".join(unknown)
        message = f"{where} has {', '.join(map(repr, unknown))[:200]}; loss_fn {spec.name!r} takes {takes}"
        raise InvalidRequest(message, "unknown_name", value=shown, bound=f"one of {takes}")
    # In the spec's order, not the body's: targets come first, and a body gets the same error every time.
    for name, input_spec in known.items():
        if name in datum.loss_inputs:
            _check_loss_input(datum.loss_inputs[name], f"{where}: {name}", input_spec, datum)
    targets = datum.loss_inputs[_TARGETS]
    _check_ids(_entries(targets), ABSENT_TARGET, model, f"{where}: {_TARGETS}")
    _check_spans(datum, where)


def _check_loss_input(value: LossInput, where: str, spec: LossInputSpec, datum: Datum) -> None:
    entries = _entries(value)
    if spec.dtype not in ("any", entries.dtype.name):
        raise BadValue(f"{where}: dtype", entries.dtype.name, f"{spec.dtype}", code="wrong_dtype")
    shape = tuple(value.shape)
    if spec.rank is not None and len(shape) != spec.rank and not (spec.rank == 0 and entries.size == 1):
        raise BadValue(f"{where}: rank", len(shape), f"{spec.rank}, as the loss declares it", "wrong_shape")
    if spec.is_per_token:
        _check_per_token(value, where, spec, datum)
    elif len(shape) == 2 and shape[1] > MAX_TARGETS_PER_TOKEN:
        raise BadValue(f"{where}: columns", shape[1], f"at most {MAX_TARGETS_PER_TOKEN}", "wrong_shape")
    _check_values(entries, where, spec.minimum)


def _check_per_token(value: LossInput, where: str, spec: LossInputSpec, datum: Datum) -> None:
    shape = tuple(value.shape)
    targets_shape = tuple(datum.loss_inputs[_TARGETS].shape)
    num_tokens = datum.num_tokens
    if len(shape) == 2 and spec.allows_matrix:
        if not 1 <= shape[1] <= MAX_TARGETS_PER_TOKEN:
            raise BadValue(f"{where}: columns", shape[1], f"1 to {MAX_TARGETS_PER_TOKEN}", "wrong_shape")
    elif len(shape) != 1:
        allowed = "[N] or [N, K]" if spec.allows_matrix else "[N]"
        raise BadValue(f"{where}: shape", list(shape), f"{allowed} with N = {num_tokens} tokens", code="wrong_shape")
    if shape[0] != num_tokens:
        raise BadValue(f"{where}: rows", shape[0], f"the datum's number of tokens, {num_tokens}", "wrong_shape")
    if spec.allows_matrix and shape != targets_shape:
        raise BadValue(f"{where}: shape", list(shape), f"that of {_TARGETS}, {list(targets_shape)}", "wrong_shape")


def _check_values(entries: DenseArray, where: str, minimum: float) -> None:
    if entries.dtype.kind != "f":
        return
    is_bad = ~np.isfinite(entries) | (entries < minimum)
    if bool(is_bad.any()):
        at = int(np.argmax(is_bad))
        bound = "finite" if minimum == -math.inf else f"finite and at least {minimum}"
        raise BadValue(f"{where}: entry {at}", entries.reshape(-1)[at].item(), bound, "not_finite")


def _check_spans(datum: Datum, where: str) -> None:
    """Spans come for both sides and cover every token once (tinker-api §4.4)."""
    if not datum.model_input_spans and not datum.loss_input_spans:
        return
    for name, spans in (("model_input", datum.model_input_spans), ("loss_fn_input", datum.loss_input_spans)):
        covered = sum(span.length for span in spans)
        if covered != datum.num_tokens:
            raise BadValue(f"{where}: tokens in {name}_spans", covered, f"all {datum.num_tokens}", "wrong_shape")


def _check_ids(
    values: DenseArray | np.ndarray[tuple[int, ...], np.dtype[np.int32]], low: int, model: BaseModelInfo, where: str
) -> None:
    high = model.vocab_size - 1
    if values.size and (int(values.min()) < low or int(values.max()) > high):
        flat = values.reshape(-1)
        at = int(np.argmax((flat < low) | (flat > high)))
        raise BadValue(f"{where}: entry {at}", flat[at].item(), f"between {low} and {high}", "outside_vocabulary")


def _entries(value: LossInput) -> DenseArray:
    return value.values if isinstance(value, SparseCsr) else value


def admit_optim_step(request: OptimStepRequest, family: OptimizerFamily) -> AdamParamsWire | DimuonParamsWire:
    """Settings of a step of a run that `family` trains; raises InvalidRequest for others and values out of bounds."""
    sent = "adamw" if request.optimizer_params is None else str(request.optimizer_params.get("type"))[:80]
    is_given = request.adam_params is not None or request.optimizer_params is not None
    if is_given and sent != family:
        message = f"the step's parameters are of type {sent!r}; the run is trained by {family!r}"
        raise InvalidRequest(message, "wrong_kind", value=sent, bound=f"parameters of {family}")
    params = read_optimizer_params(request)
    _check_number("learning_rate", params.learning_rate, 0.0)
    _check_number("beta1", params.beta1, 0.0, below=1.0)
    if isinstance(params, AdamParamsWire):
        _check_number("beta2", params.beta2, 0.0, below=1.0)
        _check_number("eps", params.eps, 0.0)
        _check_number("weight_decay", params.weight_decay, 0.0)
    return params


def _check_number(name: str, value: float, minimum: float, below: float = math.inf) -> None:
    if not minimum <= value < below:
        raise BadValue(name, value, f"at least {minimum:g}" + (f" and below {below:g}" if below < math.inf else ""))


def admit_lora(lora: LoraConfig | None, config: GatewayConfig) -> LoraConfig:
    """The adapter to train; raises InvalidRequest."""
    if lora is None:
        raise InvalidRequest("lora_config is missing; this server trains LoRA adapters, so give its rank", "missing")
    check_rank(lora.rank, config)
    if lora.seed is not None and lora.seed >= 2**63:
        raise BadValue("lora_config.seed", lora.seed, f"below 2**63 = {2**63}")
    if not (lora.train_attn or lora.train_mlp or lora.train_unembed):
        raise InvalidRequest(
            "train_attn, train_mlp and train_unembed are all false; at least one must be true", "missing"
        )
    return lora


def check_rank(rank: int, config: GatewayConfig) -> None:
    """Raises InvalidRequest for a rank the adapter slots cannot hold."""
    if not 1 <= rank <= config.max_rank:
        raise BadValue("LoRA rank", rank, f"between 1 and {config.max_rank}")


def admit_optimizer(optimizer: OptimizerConfig) -> OptimizerFamily:
    """The optimizer family of a run; raises InvalidRequest."""
    fields = optimizer.model_dump()
    match fields.pop("type"):
        case "adamw" if not fields:
            return "adamw"
        case "dimuon" if fields in ({}, {"version": 1}):
            return "dimuon"
        case _:
            asked = str(optimizer.model_dump())[:200]
            available = "{'type': 'adamw'} and {'type': 'dimuon', 'version': 1}"
            message = f"optimizer_config {asked} is not available; there are {available}"
            raise InvalidRequest(message, "not_supported", value=asked, bound=available)


def check_load(manifest: AdapterManifest, path: str, *, with_optimizer: bool, base_model: str | None) -> None:
    """Raises InvalidRequest when the checkpoint lacks what is asked of it."""
    if with_optimizer and not manifest.has_optimizer:
        message = f"{path} holds no optimizer state; load it with optimizer=false"
        raise InvalidRequest(message, "missing", value=path)
    if base_model is not None and base_model != manifest.base_model:
        raise BadValue("base_model", base_model, f"{manifest.base_model!r}, on which {path} was trained", "wrong_kind")


def check_moments(manifest: AdapterManifest, path: str, family: OptimizerFamily, *, with_optimizer: bool) -> None:
    """Raises InvalidRequest when optimizer state of one family is asked for a run of another."""
    if with_optimizer and manifest.optimizer != family:
        message = f"{path} holds optimizer state of {manifest.optimizer}; the run is trained by {family}"
        raise InvalidRequest(message, "wrong_kind", value=manifest.optimizer, bound=f"state of {family}")


def check_sampler_save(request: SaveWeightsForSamplerRequest) -> None:
    """Raises InvalidRequest unless exactly one destination is given."""
    if (request.path is None) == (request.sampling_session_seq_id is None):
        raise InvalidRequest("give either path, for a named checkpoint, or sampling_session_seq_id", "missing")
