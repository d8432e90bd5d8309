"""What a traced loss may call: names only, by namespace. The implementations are in training/custom_loss_ops.py.

Left out on purpose: everything that changes a tensor in place or takes `out` by position, random numbers (a replay
would differ), uninitialised memory, host values (`item`, `tolist`), and functions whose cost does not follow from
the shapes of their arguments.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Namespace = Literal["torch", "functional", "special", "linalg", "method", "operator", "math", "getattr"]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BOTH = _names("""
    abs absolute acos add addcdiv addcmul all amax amin any argmax argmin argsort asin atan atan2 bitwise_and
    bitwise_not bitwise_or bmm broadcast_to ceil chunk clamp clamp_max clamp_min clip clone copysign cos cosh
    count_nonzero cummax cummin cumprod cumsum detach diagonal diff digamma div divide dot eq erf erfc exp exp2 expm1
    flatten flip floor floor_divide fmax fmin fmod frac gather ge gt heaviside hypot index_add index_select isclose
    isfinite isinf isnan le lerp lgamma log log10 log1p log2 log_softmax logaddexp logaddexp2 logcumsumexp logical_and
    logical_not logical_or logical_xor logit logsumexp lt masked_fill masked_select matmul max maximum mean median min
    minimum mm mul multiply mv nan_to_num nanmean nansum narrow ne neg negative numel outer permute pow prod reciprocal
    relu remainder repeat_interleave reshape roll round rsqrt scatter scatter_add select sgn sigmoid sign sin sinh
    softmax sort split sqrt square squeeze std sub subtract sum swapaxes t take_along_dim tan tanh tile topk transpose
    tril triu true_divide trunc unbind unflatten unsqueeze var where xlogy
""")
NAMES: Mapping[Namespace, frozenset[str]] = MappingProxyType(
    {
        "torch": _BOTH
        | _names("""
            arange cat concat cosine_similarity full full_like is_floating_point ones ones_like stack zeros zeros_like
        """),
        "method": _BOTH
        | _names("""
            bfloat16 bool contiguous cpu dim double expand expand_as float half int is_floating_point long masked_fill
            ndimension new_full new_ones new_zeros norm repeat reshape_as size to type_as view view_as
        """),
        "functional": _names("""
            binary_cross_entropy binary_cross_entropy_with_logits cosine_similarity cross_entropy gelu
            hinge_embedding_loss huber_loss kl_div l1_loss log_softmax logsigmoid margin_ranking_loss mse_loss nll_loss
            one_hot pad relu sigmoid smooth_l1_loss softmax softplus softsign tanh
        """),
        "special": _names("entr expit expm1 log1p log_softmax logit logsumexp softmax xlogy"),
        "linalg": _names("vector_norm"),
        "operator": _names("""
            abs add and_ eq floordiv ge getitem gt invert le lt matmul mod mul ne neg or_ pos pow sub truediv xor
        """),
        "math": _names("ceil cos exp expm1 fabs floor log log10 log1p log2 pow sin sqrt tan tanh"),
        "getattr": _names("T device dtype indices mT ndim shape values"),
    }
)
"""Every name that a graph may use; of `getattr` the attributes."""

_PREFIXES: tuple[tuple[str, Namespace], ...] = (
    # torch.fx names a function by where it is defined, which is not always where it is documented.
    ("torch._C._nn.", "functional"),
    ("torch.nn.functional.", "functional"),
    ("torch._C._special.special_", "special"),
    ("torch.special.", "special"),
    ("torch._C._linalg.linalg_", "linalg"),
    ("torch.linalg.", "linalg"),
    ("torch.functional.", "torch"),
    ("torch.", "torch"),
    ("operator.", "operator"),
    ("_operator.", "operator"),
    ("math.", "math"),
)
_RENAMED = {"log_sigmoid": "logsigmoid"}
DTYPES = _names("bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64 half float double int long short")
"""Element types that a graph may name."""
WORDS = _names("mean sum none batchmean floor trunc tanh constant reflect replicate circular cpu")
"""Texts that may stand among arguments: how to reduce, round, pad."""
KEYWORDS = _names("""
    _stacklevel accumulate alpha approximate atol beta condition copy correction delta descending device diagonal dim
    dim0 dim1 dims dtype end end_dim eps equal_nan exponent fill_value full ignore_index index inplace input keepdim
    label_smoothing largest length log_target margin mask max min mode n nan negative_slope neginf non_blocking
    num_classes offset ord other p pad pos_weight posinf reduce reduction repeats rounding_mode rtol shape shifts size
    size_average sizes sorted source split_size_or_sections src stable start start_dim step target tensor tensors
    threshold unbiased value values weight x1 x2
""")
"""Keyword arguments that calls may have; `out` and `generator` are not among them."""


def resolve_function(target: str) -> tuple[Namespace, str] | None:
    """Namespace and name of a qualified function name, or None where a loss may not call it."""
    if target in ("abs", "builtins.abs"):
        return "operator", "abs"
    for prefix, namespace in _PREFIXES:
        if target.startswith(prefix):
            name = target.removeprefix(prefix)
            name = _RENAMED.get(name, name)
            return (namespace, name) if name in NAMES[namespace] else None
    return None
