"""JSON request bodies of the Tinker API (tinker-api §2), checked for form only: meaning is the gateway's admission.

Bodies are parsed with `model_validate_json`. Integers stay integers whatever their size; unknown fields are
ignored; text that ends up in a row holds no NUL, which databases refuse.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from openrl.errors import InvalidRequest
from openrl.protocol.runs import OptimizerFamily
from openrl.protocol.validation import NO_NUL, PROJECT_ID, describe_validation

Id = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=NO_NUL)]
ProjectId = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=PROJECT_ID)]
ShortText = Annotated[str, StringConstraints(max_length=4096, pattern=NO_NUL)]
Counter = Annotated[int, Field(ge=0, le=2**31 - 1)]
TrainingSeqId = Annotated[int, Field(ge=1, le=2**31 - 1)]
CLONE_SEQ_IDS = 10**9
"""Each client of a sampling session numbers its samples from its own number times this (tinker-api §3.3)."""
MAX_CLONE = 2**63 // CLONE_SEQ_IDS - 1
SampleSeqId = Annotated[int, Field(ge=0, le=2**63 - 1)]
Seed = Annotated[int, Field(ge=0, le=2**64 - 1)]
TtlSeconds = Annotated[int, Field(ge=3600, le=315_360_000)]  # one hour to ten years
Ints = Annotated[tuple[int, ...], Field(fail_fast=True)]  # one bad entry is told, not a million
Floats = Annotated[tuple[float, ...], Field(fail_fast=True)]
SamplerKind = Literal["snapshot", "inflight"]


class WireModel(BaseModel):
    """A frozen message; JSON numbers are taken as what they are, NaN and infinities are refused."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", strict=True, allow_inf_nan=False, protected_namespaces=(), ser_json_inf_nan="null"
    )


# -- service and sessions


class ClientConfigRequest(WireModel):
    """Body of `client/config` and `client/dynamic_config`."""

    sdk_version: str = ""


class CreateSessionRequest(WireModel):
    """Body of `create_session`."""

    tags: Annotated[tuple[ShortText, ...], Field(fail_fast=True, max_length=256)] = ()
    user_metadata: dict[str, Any] | None = None
    sdk_version: ShortText = ""
    project_id: ProjectId | None = None
    display_name: ShortText | None = None


class SessionHeartbeatRequest(WireModel):
    """Body of `session_heartbeat`."""

    session_id: Id


class FinishReason(WireModel):
    """How a client says its session went."""

    type: Literal["success", "errored", "interrupted"]


class FinishSessionRequest(WireModel):
    """Body of `sessions/{id}/finish`."""

    reason: FinishReason
    detail: ShortText | None = None


# -- training


class LoraConfig(WireModel):
    """Shape of the adapter to train."""

    rank: int
    seed: Seed | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class OptimizerConfig(WireModel):
    """Optimizer family of a run; other families carry fields of their own."""

    model_config = ConfigDict(extra="allow")

    type: str = "adamw"


def optimizer_config_of(family: OptimizerFamily) -> OptimizerConfig:
    """How the API names a family."""
    return OptimizerConfig.model_validate({"type": family} | ({"version": 1} if family == "dimuon" else {}))


class CreateModelRequest(WireModel):
    """Body of `create_model`."""

    session_id: Id
    model_seq_id: Counter
    base_model: Id
    lora_config: LoraConfig | None = None
    optimizer_config: OptimizerConfig = OptimizerConfig()
    user_metadata: dict[str, Any] | None = None


class RunRequest(WireModel):
    """Body that only names a run: `get_info`, `unload_model`."""

    model_id: Id


class RunAddress(WireModel):
    """What every request of a run has; read before the rest, so that a refusal can use up its number."""

    model_id: Id
    seq_id: TrainingSeqId


class LoadWeightsRequest(WireModel):
    """Body of `load_weights`: creates a run (session_id, model_seq_id) or loads into one (model_id, seq_id)."""

    path: str
    optimizer: bool = False
    session_id: Id | None = None
    model_seq_id: Counter | None = None
    model_id: Id | None = None
    seq_id: TrainingSeqId | None = None
    base_model: Id | None = None
    user_metadata: dict[str, Any] | None = None
    optimizer_config: OptimizerConfig | None = None
    weights_access_token: str | None = None


class LoadWeightsPayload(WireModel):
    """What is queued for a load: the checkpoint is resolved already, so a replay cannot meet another one."""

    key: str
    """Object key of the checkpoint's files."""
    optimizer: bool
    """Whether optimizer state is restored too; otherwise it starts fresh."""
    path: str
    """The tinker:// path the client gave."""


class AdamParamsWire(WireModel):
    """Settings of one AdamW step (tinker-api §2.2)."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


class DimuonParamsWire(WireModel):
    """Settings of one Dimuon step (tinker-api §2.2)."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["dimuon"]
    learning_rate: float
    grad_clip_norm: float = 0.0
    beta1: float = 0.9


class OptimStepRequest(WireModel):
    """Body of `optim_step`; `optimizer_params` is what clients send for families other than AdamW."""

    model_id: Id
    seq_id: TrainingSeqId
    adam_params: AdamParamsWire | None = None
    optimizer_params: dict[str, Any] | None = None


def read_optimizer_params(request: OptimStepRequest) -> AdamParamsWire | DimuonParamsWire:
    """The settings of a step, of whichever family; raises InvalidRequest."""
    if request.adam_params is None and request.optimizer_params is None:
        raise InvalidRequest(
            "adam_params is missing; runs of another optimizer family send optimizer_params", "missing"
        )
    if request.adam_params is not None:
        if request.optimizer_params is not None:
            message = "adam_params and optimizer_params are both given; a step takes one of them"
            raise InvalidRequest(message, "malformed", bound="either adam_params or optimizer_params")
        return request.adam_params
    try:
        return DimuonParamsWire.model_validate(request.optimizer_params)
    except ValidationError as error:
        raise describe_validation(error, "optimizer_params") from None


class SaveWeightsRequest(WireModel):
    """Body of `save_weights`; `path` is a bare name."""

    model_id: Id
    seq_id: TrainingSeqId
    path: str
    ttl_seconds: TtlSeconds | None = None
    overwrite: bool = False
    user_metadata: dict[str, str] | None = None


class SaveWeightsForSamplerRequest(WireModel):
    """Body of `save_weights_for_sampler`: a named checkpoint, or a new sampling session."""

    model_id: Id
    seq_id: TrainingSeqId
    kind: SamplerKind = "snapshot"
    path: str | None = None
    sampling_session_seq_id: Counter | None = None
    ttl_seconds: TtlSeconds | None = None
    user_metadata: dict[str, str] | None = None


class SaveWeightsExternalRequest(WireModel):
    """Body of `save_weights_external`: files for other tools, encrypted if recipients are named."""

    model_id: Id
    seq_id: TrainingSeqId
    path: str
    ttl_seconds: TtlSeconds | None = None
    age_encryption_recipients: Annotated[tuple[ShortText, ...], Field(fail_fast=True, max_length=10)] | None = None


# -- sampling


class PromptChunk(WireModel):
    """One piece of a prompt; only encoded text is served, other types are refused by name."""

    type: str = "encoded_text"
    tokens: Ints | None = None


class Prompt(WireModel):
    """Pieces that make up the prompt in order."""

    chunks: Annotated[tuple[PromptChunk, ...], Field(fail_fast=True)]


class AddedSamplingParams(WireModel):
    """Ours, not the API's: what the SDK's own class has no fields for (docs/sampling.md)."""

    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


class SamplingParamsHeader(AddedSamplingParams):
    """The header by which clients send them that cannot put them into the body; unknown names are refused."""

    model_config = ConfigDict(extra="forbid")


class SamplingParams(AddedSamplingParams):
    """How to choose tokens and when to end (tinker-api §4.5); `stop` absent, `[]` and given all differ."""

    max_tokens: int | None = None
    seed: Seed | None = None
    stop: str | Annotated[tuple[str, ...], Field(fail_fast=True)] | Ints | None = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0


class TensorData(WireModel):
    """A tensor in JSON, dense or CSR (tinker-api §4.3)."""

    data: Ints | Floats
    dtype: Literal["float32", "int64"]
    shape: Ints | None = None
    sparse_crow_indices: Ints | None = None
    sparse_col_indices: Ints | None = None


class CreateSamplingSessionRequest(WireModel):
    """Body of `create_sampling_session`; `model_path` wins over `base_model`."""

    session_id: Id
    sampling_session_seq_id: Counter
    model_path: str | None = None
    base_model: Id | None = None
    weights_access_token: str | None = None


class SampleRequest(WireModel):
    """Body of `asample`."""

    sampling_session_id: Id
    seq_id: SampleSeqId
    prompt: Prompt
    sampling_params: SamplingParams
    num_samples: int = 1
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    prompt_alt_tokens_k: int = 0
    target_prompt_logprobs: TensorData | None = None
    prompt_logprobs_last_n: int | None = None
    record_stability_info: bool | None = None


class JoinSamplingSessionRequest(WireModel):
    """Body of `join_sampling_session`."""

    sampling_session_id: Id


class SamplingSessionTarget(WireModel):
    """Samples of one client of a sampling session: 0 is the original, others are its clones."""

    type: Literal["sampling_session"]
    sampling_session_id: Id
    cloned_sampler_id: Annotated[int, Field(ge=0, le=MAX_CLONE)] = 0


class FuturesRequest(WireModel):
    """Body of `retrieve_futures`; an absent timeout asks for a long poll."""

    target: SamplingSessionTarget
    prev_cursor: SampleSeqId = 0
    timeout: Annotated[float, Field(ge=0)] | None = None
    retrieved_request_ids: Annotated[tuple[Id, ...], Field(fail_fast=True)] = ()


# -- futures and checkpoints


class FutureRequest(WireModel):
    """Body of `retrieve_future` and `cancel_future`."""

    request_id: Id
    allow_metadata_only: bool = False


class WeightsInfoRequest(WireModel):
    """Body of `weights_info`."""

    tinker_path: str
    weights_access_token: str | None = None


class CopyWeightsRequest(WireModel):
    """Body of `copy_weights`: into a new session of a project, or under a number of a session."""

    source_path: str
    destination_project_id: Id | None = None
    session_id: Id | None = None
    model_seq_id: Counter | None = None
    ttl_seconds: TtlSeconds | None = None
    weights_access_token: str | None = None


class CheckpointTtlRequest(WireModel):
    """Body of `…/ttl`; null removes the expiry."""

    ttl_seconds: TtlSeconds | None


class AdapterManifest(WireModel):
    """`openrl.json` beside the adapter in every checkpoint: what is needed to continue from it."""

    format: Literal[1]
    base_model: str
    rank: int
    seed: int
    train_attn: bool
    train_mlp: bool
    train_unembed: bool
    has_optimizer: bool
    optimizer: OptimizerFamily = "adamw"
