"""Run state as files and back: checkpoints for clients, snapshots for ourselves. Only safetensors and JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

import safetensors.torch
import torch
from pydantic import ValidationError

from openrl.errors import InvalidRequest
from openrl.model.adapter import AdapterWeights, LoraPair
from openrl.model.checked_tensors import load_tensors
from openrl.model.peft_files import PREFIX, WEIGHTS_FILE, adapter_files
from openrl.protocol.age_files import encrypt_files
from openrl.protocol.runs import RunSpec
from openrl.protocol.wire import AdapterManifest
from openrl.training.base import RunState

OPTIMIZER_FILE = "optimizer.safetensors"
GRADIENTS_FILE = "gradients.safetensors"
MANIFEST_FILE = "openrl.json"
_A_SUFFIX = ".lora_A.weight"
_B_SUFFIX = ".lora_B.weight"


def sampler_files(run: RunSpec, state: RunState) -> dict[str, bytes]:
    """A PEFT directory and our manifest: all that sampling needs."""
    return {**_peft_files(run, state), MANIFEST_FILE: _manifest(run, has_optimizer=False)}


def training_files(run: RunSpec, state: RunState) -> dict[str, bytes]:
    """As `sampler_files`, with the optimizer: all that training needs to go on."""
    return {
        **sampler_files(run, state),
        OPTIMIZER_FILE: _save(state.optimizer),
        MANIFEST_FILE: _manifest(run, has_optimizer=True),
    }


def external_files(run: RunSpec, state: RunState, recipients: Sequence[str]) -> dict[str, bytes]:
    """A PEFT directory for other tools, encrypted if there are recipients; our manifest beside it stays readable."""
    files = _peft_files(run, state)
    return {**(encrypt_files(files, recipients) if recipients else files), MANIFEST_FILE: _manifest(run, False)}


def _peft_files(run: RunSpec, state: RunState) -> dict[str, bytes]:
    # Not the model's path here: whoever downloads the files has the model under its public name.
    return adapter_files(_adapter(run, state), run.base_model.partition(":")[0])


def snapshot_files(run: RunSpec, state: RunState) -> dict[str, bytes]:
    """As `training_files`, with the gradients of an unfinished step: the run's whole state, bit for bit."""
    return {
        **training_files(run, state),
        GRADIENTS_FILE: _save(state.gradients),
    }


def read_snapshot(files: Mapping[str, bytes]) -> RunState:
    """What `snapshot_files` wrote; raises InvalidRequest where a file is missing or damaged."""
    # Sums of finite gradients may be infinite; the step that would use them fails.
    names = (WEIGHTS_FILE, OPTIMIZER_FILE, GRADIENTS_FILE)
    return RunState(*(load_tensors(files, name, is_finite=False) for name in names))


def read_checkpoint(files: Mapping[str, bytes], run: RunSpec, with_optimizer: bool) -> RunState:
    """The state in a checkpoint, without gradients; raises InvalidRequest where it does not fit the run."""
    manifest = _read_manifest(files)
    if manifest.rank != run.rank:
        raise InvalidRequest(f"the checkpoint has rank {manifest.rank}; the run has rank {run.rank}")
    if with_optimizer and not manifest.has_optimizer:
        raise InvalidRequest("the checkpoint holds no optimizer state: it was saved for sampling; load it without")
    return RunState(
        adapter=_load_adapter(files),
        optimizer=_load_optimizer(files) if with_optimizer else {},
        gradients={},
    )


def _adapter(run: RunSpec, state: RunState) -> AdapterWeights:
    names = [key.removeprefix(PREFIX).removesuffix(_A_SUFFIX) for key in state.adapter if key.endswith(_A_SUFFIX)]
    pairs = {
        name: LoraPair(state.adapter[f"{PREFIX}{name}{_A_SUFFIX}"], state.adapter[f"{PREFIX}{name}{_B_SUFFIX}"])
        for name in names
    }
    assert 2 * len(pairs) == len(state.adapter), "an engine's adapter holds nothing but pairs of factors"
    return AdapterWeights(rank=run.rank, pairs=pairs)


def _manifest(run: RunSpec, has_optimizer: bool) -> bytes:
    manifest = AdapterManifest(
        format=1,
        base_model=run.base_model,
        rank=run.rank,
        seed=run.seed,
        train_attn=run.train_attn,
        train_mlp=run.train_mlp,
        train_unembed=run.train_unembed,
        has_optimizer=has_optimizer,
        optimizer=run.optimizer,
    )
    return manifest.model_dump_json(indent=2).encode()


def _read_manifest(files: Mapping[str, bytes]) -> AdapterManifest:
    try:
        return AdapterManifest.model_validate_json(files[MANIFEST_FILE])
    except (KeyError, ValidationError) as error:
        raise InvalidRequest(f"{MANIFEST_FILE} is missing or damaged") from error


def _save(tensors: Mapping[str, Any]) -> bytes:
    return safetensors.torch.save({name: torch.as_tensor(value).contiguous() for name, value in tensors.items()})


def _load_optimizer(files: Mapping[str, bytes]) -> dict[str, torch.Tensor]:
    """Moments and the count of steps; raises InvalidRequest for what no optimizer has written."""
    optimizer = load_tensors(files, OPTIMIZER_FILE)
    num_steps = optimizer.get("num_steps")
    if num_steps is None or num_steps.dtype != torch.int64 or num_steps.shape != () or num_steps < 0:
        raise InvalidRequest(f"{OPTIMIZER_FILE}: num_steps is missing, or no count")
    for name, tensor in optimizer.items():
        if name.startswith("exp_avg_sq.") and tensor.numel() and tensor.min() < 0:
            raise InvalidRequest(f"{OPTIMIZER_FILE}: {name[:100]!r} holds squares below 0")
    _check_real(optimizer, OPTIMIZER_FILE, besides="num_steps")
    return optimizer


def _load_adapter(files: Mapping[str, bytes]) -> dict[str, torch.Tensor]:
    adapter = load_tensors(files, WEIGHTS_FILE)
    _check_real(adapter, WEIGHTS_FILE)
    return adapter


def _check_real(tensors: Mapping[str, torch.Tensor], file: str, besides: str = "") -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() and name != besides:
            raise InvalidRequest(f"{file}: {name[:100]!r} is of {tensor.dtype}; it must be of real numbers")
