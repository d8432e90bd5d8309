"""A run's exact numbers, read from the checkpoints that it saves."""

import io
import tarfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx
import safetensors.torch
import tinker
import torch
from tinker import types

GRADIENT_PROBE = types.AdamParams(learning_rate=0.0, beta1=0.0, beta2=0.0, eps=1.0)
"""A step that moves nothing: afterwards the first moment is the gradient itself, bit for bit."""


@dataclass(frozen=True, slots=True)
class SavedState:
    """Adapter and optimizer by tensor name."""

    adapter: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]

    @property
    def first_moments(self) -> dict[str, torch.Tensor]:
        return {
            name.removeprefix("exp_avg."): value
            for name, value in self.optimizer.items()
            if name.startswith("exp_avg.")
        }


def state_of(run: tinker.TrainingClient, data_dir: Path) -> SavedState:
    """What the run holds; gradients that wait for a step are not part of it."""
    return read_state(run.save_state(f"state-{uuid.uuid4().hex}").result().path, data_dir)


def read_state(path: str, data_dir: Path) -> SavedState:
    """The checkpoint at a tinker:// path, from the server's disk."""
    [home] = stored_objects(path, data_dir)
    return read_object(home)


def read_object(home: Path) -> SavedState:
    """The newest version in a checkpoint's directory."""
    version = max(home.iterdir())
    return SavedState(
        safetensors.torch.load_file(version / "adapter_model.safetensors"),
        safetensors.torch.load_file(version / "optimizer.safetensors"),
    )


def stored_objects(path: str, data_dir: Path) -> list[Path]:
    """The directories of a checkpoint; none once it is deleted."""
    prefix = quote(f"checkpoints/{path.removeprefix('tinker://')}/", safe="")
    objects = (data_dir / "blobs" / "objects").iterdir()
    return [each for each in objects if each.name.startswith(prefix)]


def gradient_of(run: tinker.TrainingClient, data_dir: Path) -> dict[str, torch.Tensor]:
    """The gradient that waits for the run's next step, by tensor name. Uses it up; weights stay."""
    run.optim_step(GRADIENT_PROBE).result()
    return state_of(run, data_dir).first_moments


def same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Equal bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def same_state(one: SavedState, other: SavedState) -> bool:
    """Equal bit by bit."""
    return same_tensors(one.adapter, other.adapter) and same_tensors(one.optimizer, other.optimizer)


def download(http: httpx.Client, path: str, directory: Path) -> Path:
    """Unpack a checkpoint's archive, as the API hands it out, into the directory."""
    run_id, kind, name = path.removeprefix("tinker://").split("/")
    answer = http.get(f"training_runs/{run_id}/checkpoints/{kind}/{name}/archive", follow_redirects=True)
    assert answer.status_code == 200, answer.text
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        archive.extractall(directory, filter="data")
    return directory
