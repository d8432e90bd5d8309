"""Moves runs between engines and the object store: open, load, save, snapshot."""

from collections.abc import Callable
from dataclasses import replace

from openrl.protocol.paths import CheckpointPath, sampling_session_id
from openrl.protocol.runs import CheckpointKind
from openrl.rpc.messages import OpenRun, Report, RunSnapshotted, SavedCheckpoint, WorkItem
from openrl.store.base import Blobs
from openrl.store.object_keys import snapshot_key
from openrl.worker.checkpoints import (
    external_files,
    read_checkpoint,
    read_snapshot,
    sampler_files,
    snapshot_files,
    training_files,
)
from openrl.worker.deliverer import Product
from openrl.worker.open_runs import OpenedRun, OpenRuns
from openrl.worker.payloads import PayloadReader, encode_json


class RunFiles:
    """Copies state out of the engine at once; what it returns then writes the copy, on any thread."""

    def __init__(self, blobs: Blobs, payloads: PayloadReader, runs: OpenRuns, wall_clock: Callable[[], float]) -> None:
        self._blobs = blobs
        self._payloads = payloads
        self._runs = runs
        self._wall_clock = wall_clock

    def open(self, command: OpenRun) -> None:
        """Have the run in its engine, from its snapshot or from its seed."""
        key = command.snapshot_key
        state = None if key is None else read_snapshot(self._blobs.get_object(key))
        self._runs.engines_of(command.run).training.open_run(command.run, state)
        self._runs.add(command.run, command.snapshot_seq_id)

    def load(self, item: WorkItem) -> Callable[[], Product]:
        """Replace a run's weights by a checkpoint's."""
        run = self._runs.get(item.run_id)
        request = self._payloads.load_weights(item)
        state = read_checkpoint(self._blobs.get_object(request.key), run.spec, request.optimizer)
        run.engines.training.load_weights(item.run_id, state, request.optimizer)
        return lambda: Product(encode_json({"path": request.path, "model_id": item.run_id, "type": "load_weights"}))

    def save_for_training(self, item: WorkItem) -> Callable[[], Product]:
        """Copy the state now; the checkpoint is durable when the returned function has run."""
        run = self._runs.get(item.run_id)
        request = self._payloads.save_weights(item)
        state = run.engines.training.export_run(item.run_id)

        def produce() -> Product:
            files = training_files(run.spec, state)
            saved = self._write(item, "weights", request.path, files, request.ttl_seconds, request.user_metadata)
            saved = replace(saved, may_replace=request.overwrite)
            return Product(encode_json({"path": _tinker_path(saved), "type": "save_weights"}), saved)

        return produce

    def save_for_sampler(self, item: WorkItem) -> Callable[[], Product]:
        """As `save_for_training`, named or for a new sampling session."""
        run = self._runs.get(item.run_id)
        request = self._payloads.save_weights_for_sampler(item)
        state = run.engines.training.export_run(item.run_id)

        def produce() -> Product:
            files = sampler_files(run.spec, state)
            name = request.path or ""
            saved = self._write(item, "sampler_weights", name, files, request.ttl_seconds, request.user_metadata)
            if name:
                return Product(encode_json({"path": _tinker_path(saved), "type": "save_weights_for_sampler"}), saved)
            number = request.sampling_session_seq_id or 0
            session_id = item.run_id.rpartition(":train:")[0]
            saved = replace(saved, sampler_id=sampling_session_id(session_id, number), sampling_session_seq_id=number)
            body = {"sampling_session_id": saved.sampler_id, "type": "save_weights_for_sampler"}
            return Product(encode_json(body), saved)

        return produce

    def save_for_other_tools(self, item: WorkItem) -> Callable[[], Product]:
        """As `save_for_training`, in the files that others read."""
        run = self._runs.get(item.run_id)
        request = self._payloads.save_weights_external(item)
        state = run.engines.training.export_run(item.run_id)

        def produce() -> Product:
            files = external_files(run.spec, state, request.age_encryption_recipients or ())
            saved = self._write(item, "external_weights", request.path, files, request.ttl_seconds, None)
            body = {"path": _tinker_path(saved), "size_bytes": saved.size_bytes, "type": "save_weights_external"}
            return Product(encode_json(body), saved)

        return produce

    def snapshot(self, run: OpenedRun) -> Callable[[], Report]:
        """Copy the whole state now; the returned function makes it durable."""
        run_id, seq_id = run.spec.run_id, run.last_seq_id
        state = run.engines.training.export_run(run_id)

        def write() -> Report:
            key = snapshot_key(run_id, seq_id)
            self._blobs.put_object(key, snapshot_files(run.spec, state))
            return RunSnapshotted(run_id, seq_id, key)

        return write

    def _write(
        self,
        item: WorkItem,
        kind: CheckpointKind,
        name: str,
        files: dict[str, bytes],
        ttl_s: float | None,
        user_metadata: dict[str, str] | None,
    ) -> SavedCheckpoint:
        # The request's id ends the key: a save that is repeated after a crash writes the same place,
        # and one that replaces a checkpoint leaves the old files whole until the row points here.
        key = f"checkpoints/{item.run_id}/{kind}/{name or item.request_id}/{item.request_id}"
        return SavedCheckpoint(
            run_id=item.run_id,
            kind=kind,
            name=name,
            key=key,
            size_bytes=self._blobs.put_object(key, files),
            expires_at=None if ttl_s is None else self._wall_clock() + ttl_s,
            user_metadata=user_metadata,
            may_replace=False,
        )


def _tinker_path(saved: SavedCheckpoint) -> str:
    return str(CheckpointPath(saved.run_id, saved.kind, saved.name))
