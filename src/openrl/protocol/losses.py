"""Names, inputs and settings of the built-in losses; the formulas are in docs/losses.md. No torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from openrl.errors import BadValue, InvalidRequest

MAX_TARGETS_PER_TOKEN = 4096
"""Largest K of [N, K] targets: sparse inputs are cheap to send and dense to answer."""


@dataclass(frozen=True, slots=True)
class LossInputSpec:
    """What one entry of `loss_fn_inputs` must look like, relative to the N tokens of its datum.

    Values are finite and at least `minimum`. A target of -1 is absent: its log-probability is given as
    0.0 and it has no part in the loss.
    """

    dtype: Literal["int64", "float32", "any"]
    allows_matrix: bool = False  # [N, K], dense or sparse, besides [N]; the shape of target_tokens
    minimum: float = -math.inf
    rank: int | None = None  # how many dimensions it must have, where that is declared
    is_per_token: bool = True  # False: any shape of that rank


@dataclass(frozen=True, slots=True)
class LossSettingSpec:
    """One key of `loss_fn_config`: a finite number within bounds."""

    default: float
    minimum: float = 0.0
    maximum: float = math.inf


@dataclass(frozen=True, slots=True)
class LossSpec:
    """What a loss takes: inputs and settings that are not named here are refused."""

    name: str
    required: Mapping[str, LossInputSpec]
    optional: Mapping[str, LossInputSpec] = field(default_factory=dict[str, LossInputSpec])
    settings: Mapping[str, LossSettingSpec] = field(default_factory=dict[str, LossSettingSpec])
    ignores_others: bool = False  # datums may carry inputs that the loss does not name

    @property
    def is_rl(self) -> bool:
        """Whether the loss compares with sampling log-probabilities, and so returns a ratio."""
        return "logprobs" in self.required

    def inputs(self) -> dict[str, LossInputSpec]:
        """Required and optional inputs by name."""
        return {**self.required, **self.optional}


def resolve_loss(name: str) -> LossSpec:
    """Raises InvalidRequest with the known names."""
    if name not in LOSSES:
        known = f"{', '.join(LOSSES)}, {CUSTOM}"
        message = f"unknown loss_fn {name!r}; known: {known}"
        raise InvalidRequest(message, "unknown_name", value=name, bound=f"one of {known}")
    return LOSSES[name]


def resolve_loss_settings(name: str, given: Mapping[str, float | str]) -> dict[str, float]:
    """Every setting of the loss, from `given` or its default; raises InvalidRequest naming key and bound."""
    spec = resolve_loss(name)
    unknown = sorted(given.keys() - spec.settings.keys())
    if unknown:
        known = ", ".join(spec.settings) or "none"
        message = f"loss_fn {name!r} has no setting {', '.join(map(repr, unknown))}; it has: {known}"
        raise InvalidRequest(message, "unknown_name", value=", ".join(unknown), bound=f"one of {known}")
    settings = {key: _checked(name, key, setting, given) for key, setting in spec.settings.items()}
    for low, high in _ORDERED:
        if low in settings and settings[low] > settings[high]:
            message = f"loss_fn {name!r}: {low} {settings[low]} is above {high} {settings[high]}"
            raise InvalidRequest(message, "out_of_range", value=settings[low], bound=f"at most {settings[high]}")
    return settings


def _checked(name: str, key: str, setting: LossSettingSpec, given: Mapping[str, float | str]) -> float:
    value = given.get(key, setting.default)
    if isinstance(value, str):
        raise BadValue(f"loss_fn {name!r}: {key}", value, "a number, not a text", "wrong_dtype")
    if not (math.isfinite(value) and setting.minimum <= value <= setting.maximum):
        bounds = f"finite and within [{setting.minimum}, {setting.maximum}]"
        raise BadValue(f"loss_fn {name!r}: {key}", value, bounds)
    return float(value)


def _policy_loss(
    name: str,
    settings: dict[str, LossSettingSpec] | None = None,
    optional: dict[str, LossInputSpec] | None = None,
) -> LossSpec:
    required = {
        "target_tokens": LossInputSpec("int64", minimum=0),
        "logprobs": LossInputSpec("float32"),
        "advantages": LossInputSpec("float32"),
    }
    return LossSpec(name, required, optional or {}, settings or {})


def _clipped(low: float, high: float) -> dict[str, LossSettingSpec]:
    return {"clip_low_threshold": LossSettingSpec(low), "clip_high_threshold": LossSettingSpec(high)}


_ORDERED = (("clip_low_threshold", "clip_high_threshold"), ("sequence_ratio_low", "sequence_ratio_high"))
_THRESHOLDS = {
    "clip_low_threshold": LossInputSpec("float32", minimum=0.0),
    "clip_high_threshold": LossInputSpec("float32", minimum=0.0),
}
_RATIO_MASK = {"sequence_ratio_mask": LossInputSpec("float32")}
_STABLE_SETTINGS = {
    "kl_coeff": LossSettingSpec(0.01),
    "ratio_cap": LossSettingSpec(2.0),
    "sequence_ratio_low": LossSettingSpec(0.5),
    "sequence_ratio_high": LossSettingSpec(2.0),
}

_ALL = (
    LossSpec(
        "cross_entropy",
        {
            "target_tokens": LossInputSpec("int64", allows_matrix=True, minimum=-1),
            "weights": LossInputSpec("float32", allows_matrix=True),
        },
    ),
    _policy_loss("importance_sampling"),
    _policy_loss("ppo", _clipped(0.8, 1.2), _THRESHOLDS),
    _policy_loss("cispo", _clipped(0.0, 4.0), _THRESHOLDS),
    _policy_loss("dro", {"beta": LossSettingSpec(0.05)}),
    _policy_loss("gspo", _clipped(1 - 3e-4, 1 + 4e-4), {**_THRESHOLDS, **_RATIO_MASK}),
    _policy_loss("stable_reinforce", _STABLE_SETTINGS, _RATIO_MASK),
)

CUSTOM = "custom"
"""The name under which a loss that a client created is called; see protocol.custom_loss."""
LOSSES: Mapping[str, LossSpec] = MappingProxyType({spec.name: spec for spec in _ALL})
"""Every built-in loss by its wire name."""
