"""Keeps the buffers of idle runs in files of a scratch directory."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


class SpillDirectory:
    """Files that this process alone writes and reads; what an earlier process left is deleted.

    The directory holds nothing durable: a run's durable state is its snapshot in the blob store.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_written = 0
        path.mkdir(parents=True, exist_ok=True)
        for left_over in path.glob("run-*.safetensors"):
            left_over.unlink()

    def write(self, buffers: dict[str, Tensor]) -> Path:
        """A new file that holds the buffers; raises OSError or SafetensorError, and leaves no part file."""
        file = self._path / f"run-{self._num_written}.safetensors"
        self._num_written += 1
        try:
            save_file(buffers, file)
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        return file

    def read(self, file: Path) -> dict[str, Tensor]:
        """The buffers, on the host."""
        return load_file(file)

    def delete(self, file: Path) -> None:
        """Free the file."""
        file.unlink(missing_ok=True)
