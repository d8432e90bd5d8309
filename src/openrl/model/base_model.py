"""A Hugging Face model with our linears and our attention inside: hidden states, logits.

Legend: T packed rows, M chosen rows, D model dim, V vocab, B block of V.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoTokenizer

from openrl.config import WorkerConfig
from openrl.errors import InvalidRequest
from openrl.model.adapter import ATTENTION_PROJECTIONS, HEAD_NAME, MLP_PROJECTIONS
from openrl.model.batch import ROW_MULTIPLE, Adapters, Batch, Segment
from openrl.model.compile import LayerCompiler, traced_attention
from openrl.model.linear_groups import GroupMember, LinearGroup, fuse_linears
from openrl.model.lora import ActiveBatch, LoraLinear, product_fp32
from openrl.model.memory import release_freed_memory
from openrl.model.recompute import make_recomputable
from openrl.model.residual import widen_residual
from openrl.model.vocab_table import narrow_tables
from openrl.model.weight_files import load_causal_lm

ATTENTION_NAME = "openrl"
HEAD_BLOCK_CPU = 2048


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a base model is and how to compute with it."""

    name: str
    path: Path
    device: torch.device
    dtype: torch.dtype
    compiler: str | None = None  # torch.compile's backend for what lies between products, see model.compile
    has_fp32_residual: bool = False  # see model.residual


def resolve_source(name: str, path: Path, config: WorkerConfig) -> ModelSource:
    """Turn "auto" device and type into real ones: CUDA in bf16 where there is a GPU, else CPU in fp32."""
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = config.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype not in dtypes:
        raise InvalidRequest(f"worker.dtype is {dtype!r}; it must be one of auto, {', '.join(dtypes)}")
    is_compiled = device.startswith("cuda") if config.compile == "auto" else config.compile
    compiler = "inductor" if is_compiled else None
    return ModelSource(name, path, torch.device(device), dtypes[dtype], compiler, config.fp32_residual)


class BaseModel:
    """One copy of a base model's weights, shared by training and sampling.

    Not thread-safe: one forward pass at a time. `linear_shapes`: name -> (inputs, outputs) of every linear
    that an adapter may train, in model order, the head last. `linear_groups`: those computed together; see
    linear_groups. Empty where every linear is computed by itself.
    """

    def __init__(self, source: ModelSource, causal_lm: Any, tokenizer: Any, *, fuses_linears: bool) -> None:
        config = causal_lm.config.get_text_config()
        self.name = source.name
        self.path = source.path
        self.device = source.device
        self.dtype = source.dtype
        self.tokenizer = tokenizer
        self.vocab_size = int(config.vocab_size)
        self.head_block = HEAD_BLOCK_CPU if source.device.type == "cpu" else self.vocab_size
        self.context_length = int(config.max_position_embeddings)
        self.num_layers = int(config.num_hidden_layers)
        self.num_heads = int(config.num_attention_heads)
        self.num_kv_heads = int(config.num_key_value_heads)
        self.head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        self.layer_windows = _layer_windows(config)
        self.eos_token_ids = _eos_token_ids(causal_lm, config)
        self._active = ActiveBatch()
        self._body = causal_lm.model
        self.linear_groups: list[LinearGroup] = []
        if fuses_linears:
            self.linear_groups = fuse_linears(causal_lm, (*ATTENTION_PROJECTIONS, *MLP_PROJECTIONS), self._active)
        self.linear_shapes = _fused_shapes(self.linear_groups) or _replace_linears(causal_lm, self._active)
        if source.has_fp32_residual and source.dtype != torch.float32:
            widen_residual(self._body, source.dtype, (GroupMember, LoraLinear))
        self.is_compiled = source.compiler is not None
        if source.compiler is not None:
            LayerCompiler(_attention, source.compiler).compile_layers(self._body.layers)
        make_recomputable(list(self._body.layers), self._active)
        head = causal_lm.get_output_embeddings()
        self.head_weight: Tensor = head.weight
        self.linear_shapes[HEAD_NAME] = (self.head_weight.shape[1], self.head_weight.shape[0])
        if self.linear_groups:
            self.linear_groups.append(
                LinearGroup((HEAD_NAME,), self.head_weight.shape[1], (self.head_weight.shape[0],))
            )

    def pad_rows(self, num_rows: int) -> int:
        """The next row count that keeps rows independent of each other."""
        return -(-num_rows // ROW_MULTIPLE) * ROW_MULTIPLE

    def head_blocks(self) -> Iterator[slice]:
        """Stretches of the vocabulary to take at once: on CPU, as much of the head as its caches hold.

        Measured on one core (D = 640, V = 262144): 2,048 at a time 90 GFLOP/s, all at once 63.
        """
        for start in range(0, self.vocab_size, self.head_block):
            yield slice(start, min(start + self.head_block, self.vocab_size))

    def head_rows(self, block: slice) -> Float[Tensor, "B D"]:
        """The head's weights for a stretch of the vocabulary, in the compute type; the table may be narrower."""
        return self.head_weight[block].to(self.dtype)

    def hidden(self, batch: Batch) -> Float[Tensor, "T D"]:
        """Hidden states after the final norm, one row per packed token; with autograd unless disabled."""
        with self._active.using(batch):
            output = self._body(
                input_ids=batch.token_ids_T[None],
                position_ids=batch.position_ids_T[None],
                use_cache=False,
                openrl_batch=batch,
            )
        return output.last_hidden_state[0]

    def logits(
        self,
        hidden_MD: Float[Tensor, "M D"],
        adapters: Adapters | None = None,
        segments: tuple[Segment, ...] = (),
    ) -> Float[Tensor, "M V"]:
        """fp32 logits of chosen rows; `segments` cover these rows. M must be a multiple of ROW_MULTIPLE on CPU.

        Not differentiable: model.head has the log-probabilities that carry gradients.
        """
        with torch.no_grad():
            return self._logits(hidden_MD, adapters, segments)

    def _logits(
        self, hidden_MD: Float[Tensor, "M D"], adapters: Adapters | None, segments: tuple[Segment, ...]
    ) -> Float[Tensor, "M V"]:
        if self.dtype == torch.float32:
            logits_MV = hidden_MD.new_empty(hidden_MD.shape[0], self.vocab_size)
            for block in self.head_blocks():
                torch.mm(hidden_MD, self.head_rows(block).t(), out=logits_MV[:, block])
        else:
            blocks = [product_fp32(hidden_MD, self.head_rows(block).t()) for block in self.head_blocks()]
            logits_MV = blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)
        return logits_MV if adapters is None else adapters.apply(HEAD_NAME, hidden_MD, logits_MV, segments)


def load_base_model(source: ModelSource) -> BaseModel:
    """Load a Hugging Face directory; raises InvalidRequest where it cannot be served."""
    register_attention()
    config = AutoConfig.from_pretrained(source.path, trust_remote_code=False)
    _refuse_unsupported(source.name, config.get_text_config())
    causal_lm = load_causal_lm(source.path, config, source.dtype, ATTENTION_NAME, source.device)
    model = create_base_model(source, causal_lm, AutoTokenizer.from_pretrained(source.path, trust_remote_code=False))
    release_freed_memory()
    return model


def register_attention() -> None:
    """Make ATTENTION_NAME known to transformers, for models that are to be ours."""
    AttentionInterface.register(ATTENTION_NAME, _attention)


def create_base_model(
    source: ModelSource, causal_lm: Any, tokenizer: Any, *, fuses_linears: bool | None = None
) -> BaseModel:
    """Our model around a transformers one whose attention is ATTENTION_NAME; takes it over.

    `fuses_linears`: see linear_groups; by default everywhere but on CPU, where a row's bits would change.
    """
    causal_lm.to(source.device).eval().requires_grad_(requires_grad=False)
    if source.device.type == "cpu":
        narrow_tables(causal_lm)
    if fuses_linears is None:
        fuses_linears = source.device.type != "cpu"
    return BaseModel(source, causal_lm, tokenizer, fuses_linears=fuses_linears)


def _refuse_unsupported(name: str, config: Any) -> None:
    for field in ("final_logit_softcapping", "attn_logit_softcapping"):
        if getattr(config, field, None):
            raise InvalidRequest(f"model {name!r} sets {field} = {getattr(config, field)}, which is not supported")
    if getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None):
        raise InvalidRequest(f"model {name!r} is a mixture of experts, which is not supported")


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    openrl_batch: Batch | None = None,
    sliding_window: int | None = None,
    **unused: object,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: [1, N, T, H] in, [1, T, N, H] out."""
    del attention_mask, unused
    if openrl_batch is None:  # a trace
        number = getattr(module, "openrl_number")  # noqa: B009
        return traced_attention(query, key, value, number, scaling, sliding_window), None
    layer = int(getattr(module, "layer_idx"))  # noqa: B009
    q_TNH, k_TKH, v_TKH = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    out_TNH = openrl_batch.attention.attend(layer, q_TNH, k_TKH, v_TKH, scaling, sliding_window)
    return out_TNH[None], None


def _replace_linears(causal_lm: Any, active: ActiveBatch) -> dict[str, tuple[int, int]]:
    """Swap every projection for a LoraLinear over the same weight; returns their shapes."""
    shapes: dict[str, tuple[int, int]] = {}
    for name, module in list(causal_lm.named_modules()):
        parent_name, _, projection = name.rpartition(".")
        if projection in (*ATTENTION_PROJECTIONS, *MLP_PROJECTIONS) and isinstance(module, nn.Linear):
            setattr(causal_lm.get_submodule(parent_name), projection, LoraLinear(module, name, active))
            shapes[name] = (module.in_features, module.out_features)
    if not shapes:
        raise InvalidRequest(f"{type(causal_lm).__name__} has none of the projections that adapters train")
    return shapes


def _fused_shapes(groups: list[LinearGroup]) -> dict[str, tuple[int, int]]:
    return {
        name: (group.num_inputs, size)
        for group in groups
        for name, size in zip(group.names, group.outputs, strict=True)
    }


def _layer_windows(config: Any) -> list[int | None]:
    """Sliding window of each layer; None: full attention."""
    types = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None)
    return [int(window) if kind == "sliding_attention" and window else None for kind in types]


def _eos_token_ids(causal_lm: Any, config: Any) -> frozenset[int]:
    """Tokens that end a generation by default: the generation config's, else the model config's."""
    for source in (causal_lm.generation_config, config):
        ids = getattr(source, "eos_token_id", None)
        if ids is not None:
            return frozenset([ids] if isinstance(ids, int) else ids)
    return frozenset()
