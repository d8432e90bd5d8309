"""Reads a datum's loss inputs into tensors: targets for the head, typed inputs for the loss.

Legend: N tokens of the datum, K targets of one token, M tokens that have a target.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from openrl.errors import InvalidRequest
from openrl.protocol.custom_loss import CustomLoss
from openrl.protocol.datum import Datum, DenseArray, LossInput, SparseCsr
from openrl.protocol.losses import CUSTOM, MAX_TARGETS_PER_TOKEN, LossSpec
from openrl.training.losses import PolicyInputs, Reals

ABSENT = -1
"""Target id of a place without a target."""


@dataclass(frozen=True, slots=True)
class Targets:
    """The tokens whose log-probability a datum asks for."""

    rows_M: NDArray[np.int64]  # token positions that have a target, ascending
    ids_MK: NDArray[np.int64]  # ABSENT where there is none
    shape: tuple[int, ...]  # of target_tokens: (N,) or (N, K)

    def by_token(self) -> NDArray[np.int64]:
        """Target ids of every token, [N, K]; ABSENT where there is none."""
        ids_NK = np.full((self.shape[0], self.ids_MK.shape[1]), ABSENT, np.int64)
        ids_NK[self.rows_M] = self.ids_MK
        return ids_NK

    def spread(self, logprobs_MK: Float[Tensor, "M K"]) -> Float[Tensor, "N ..."]:
        """Log-probabilities in the shape of the targets; 0.0 where there is no target."""
        if len(self.rows_M) == self.shape[0]:
            return logprobs_MK.reshape(self.shape)
        full_NK = logprobs_MK.new_zeros(self.shape[0], self.ids_MK.shape[1])
        return full_NK.index_put((torch.from_numpy(self.rows_M),), logprobs_MK).reshape(self.shape)

    def spread_array(self, logprobs_MK: NDArray[np.float32]) -> NDArray[np.float32]:
        """As `spread`, of an array."""
        if len(self.rows_M) == self.shape[0]:
            return logprobs_MK.reshape(self.shape)
        full_NK = np.zeros((self.shape[0], self.ids_MK.shape[1]), np.float32)
        full_NK[self.rows_M] = logprobs_MK
        return full_NK.reshape(self.shape)


def read_targets(datum: Datum) -> Targets:
    """The datum's targets, dense; raises InvalidRequest naming shape and bound."""
    ids = _dense(datum, "target_tokens", ABSENT)
    if ids.ndim not in (1, 2) or ids.shape[0] != datum.num_tokens:
        raise InvalidRequest(f"target_tokens has shape {ids.shape}; the datum has {datum.num_tokens} tokens")
    ids_NK = ids.reshape(ids.shape[0], -1).astype(np.int64, copy=False)
    rows_M = np.flatnonzero((ids_NK >= 0).any(axis=1))
    return Targets(rows_M, ids_NK[rows_M], ids.shape)


def check_targets(targets: Targets, spec: LossSpec, vocab_size: int) -> None:
    """Raises InvalidRequest where the loss or the model cannot take the targets."""
    if spec.is_rl and (len(targets.shape) != 1 or len(targets.rows_M) != targets.shape[0]):
        raise InvalidRequest(f"{spec.name} needs exactly one target for every token")
    if targets.ids_MK.size and int(targets.ids_MK.max()) >= vocab_size:
        raise InvalidRequest(f"target {int(targets.ids_MK.max())} is outside the vocabulary of {vocab_size}")


def may_have_gradient(datum: Datum, targets: Targets, spec: LossSpec) -> NDArray[np.bool_]:
    """Per row of `targets.rows_M`: False where the loss's gradient is surely zero."""
    if spec.name == "cross_entropy":
        weights = _shaped(datum, "weights", targets.shape)
        return (weights.reshape(weights.shape[0], -1)[targets.rows_M] != 0).any(axis=1)
    # The penalties of the first two reach tokens without an advantage; what a client's own loss reaches is not known.
    if spec.name in ("dro", "stable_reinforce", CUSTOM):
        return np.ones(len(targets.rows_M), np.bool_)
    return _shaped(datum, "advantages", (datum.num_tokens,))[targets.rows_M] != 0


def read_weights(datum: Datum, targets: Targets) -> Float64[Reals, "N ..."]:
    """Cross-entropy weights in the shape of the targets; unlisted sparse entries are 0."""
    return _shaped(datum, "weights", targets.shape).astype(np.float64)


def read_policy_inputs(
    datum: Datum,
    spec: LossSpec,
    settings: Mapping[str, float],
    target_logprobs: Float64[Reals, " N"],
) -> PolicyInputs:
    """A policy-gradient loss's inputs; raises InvalidRequest."""
    advantages = _tokens(datum, "advantages")
    in_sequence_N, sequence_index_N, num_sequences = _sequences(datum, spec, advantages)
    clip_low = _threshold(datum, "clip_low_threshold", spec, settings)
    clip_high = _threshold(datum, "clip_high_threshold", spec, settings)
    if bool((clip_low > clip_high).any()):
        raise InvalidRequest("clip_low_threshold is above clip_high_threshold at some token")
    return PolicyInputs(
        target_logprobs=target_logprobs,
        sampling_logprobs=_tokens(datum, "logprobs"),
        advantages=advantages,
        clip_low=clip_low,
        clip_high=clip_high,
        in_sequence_N=in_sequence_N,
        sequence_index_N=sequence_index_N,
        num_sequences=num_sequences,
        settings=settings,
    )


def read_custom_inputs(datum: Datum, loss: CustomLoss, logprobs: Float[Tensor, "N ..."]) -> list[Tensor]:
    """What a client's own loss takes: log-probabilities first, then the named inputs as they were sent."""
    tensors = [logprobs]
    for name, _ in loss.inputs[1:]:
        tensors.append(torch.from_numpy(_dense(datum, name, ABSENT if name == "target_tokens" else 0)))
    for place, (name, rank) in enumerate(loss.inputs):
        if rank == 0 and tensors[place].numel() == 1:  # the wire has no other form of a number
            tensors[place] = tensors[place].reshape(())
        if tensors[place].ndim != rank:
            shape = list(tensors[place].shape)
            raise InvalidRequest(f"{name} has shape {shape}; the loss {loss.name!r} takes it with rank {rank}")
    return tensors


def _sequences(
    datum: Datum, spec: LossSpec, advantages: Float64[Reals, " N"]
) -> tuple[NDArray[np.bool_], NDArray[np.int64], int]:
    """Which tokens form sequence ratios, which sequence each belongs to, and how many there are.

    The mask wins; else the sampled spans; else the tokens that carry an advantage. Without spans the
    whole datum is one sequence.
    """
    sampled, index, num_sequences = _provenance(datum)
    if "sequence_ratio_mask" in spec.optional and "sequence_ratio_mask" in datum.loss_inputs:
        in_sequence = _tokens(datum, "sequence_ratio_mask") != 0
        if not bool(in_sequence.any()) and bool((advantages != 0).any()):
            raise InvalidRequest("sequence_ratio_mask marks no token, but advantages are not all zero")
    elif datum.loss_input_spans:
        in_sequence = sampled
    else:
        in_sequence = advantages != 0
    return in_sequence, index, num_sequences


def _provenance(datum: Datum) -> tuple[NDArray[np.bool_], NDArray[np.int64], int]:
    """Per token whether it was sampled, and the number of its sequence, from the spans in order."""
    sampled = np.zeros(datum.num_tokens, np.bool_)
    index = np.zeros(datum.num_tokens, np.int64)
    numbers: dict[str, int] = {}
    start = 0
    for span in datum.loss_input_spans:
        stop = start + span.length
        sampled[start:stop] = span.is_sampled
        index[start:stop] = numbers.setdefault(span.sequence_id, len(numbers))
        start = stop
    if datum.loss_input_spans and start != datum.num_tokens:
        raise InvalidRequest(f"loss_fn_input_spans cover {start} of {datum.num_tokens} tokens")
    return sampled, index, max(1, len(numbers))


def _threshold(datum: Datum, name: str, spec: LossSpec, settings: Mapping[str, float]) -> Float64[Reals, " N"]:
    """A clip threshold per token: the datum's own, or the setting for every token."""
    if name in spec.optional and name in datum.loss_inputs:
        return _tokens(datum, name)
    return np.full(datum.num_tokens, settings.get(name, 0.0))


def _tokens(datum: Datum, name: str) -> Float64[Reals, " N"]:
    return _shaped(datum, name, (datum.num_tokens,)).astype(np.float64)


def _shaped(datum: Datum, name: str, shape: tuple[int, ...]) -> DenseArray:
    values = _dense(datum, name, 0)
    if values.shape != shape:
        raise InvalidRequest(f"{name} has shape {values.shape}; it must be {shape}")
    return values


def _dense(datum: Datum, name: str, padding: int) -> DenseArray:
    if name not in datum.loss_inputs:
        raise InvalidRequest(f"loss_fn_inputs lacks {name}")
    return densify(datum.loss_inputs[name], padding)


def densify(values: LossInput, padding: int) -> DenseArray:
    """The array itself, or a sparse one with `padding` at its unlisted entries."""
    if not isinstance(values, SparseCsr):
        return values
    if values.shape[1] > MAX_TARGETS_PER_TOKEN:
        raise InvalidRequest(f"{values.shape[1]} targets per token; the limit is {MAX_TARGETS_PER_TOKEN}")
    dense = np.full(values.shape, padding, values.values.dtype)
    rows = np.repeat(np.arange(values.shape[0]), np.diff(values.crow_indices))
    dense[rows, values.col_indices] = values.values
    return cast("DenseArray", dense)
