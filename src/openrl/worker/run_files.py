"""Moves runs between engines and the object store: open, load, save, snapshot."""

from collections.abc import Callable
from dataclasses import replace

from openrl.protocol.paths import CheckpointPath, sampling_session_id
from openrl.protocol.runs import CheckpointKind
from openrl.rpc.messages import OpenRun, Report, RunSnapshotted, SavedCheckpoint, WorkItem
from openrl.store.base import Blobs
from openrl.store.object_keys import checkpoint_key, snapshot_key
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
from openrl.worker.patience import read_patiently
from openrl.worker.payloads import PayloadReader, encode_json


class RunFiles:
    """Copies state out of the engine at once; what it returns then writes the copy, on any thread."""

    def __init__(
        self,
        blobs: Blobs,
        payloads: PayloadReader,
        runs: OpenRuns,
        wall_clock: Callable[[], float],
        new_attempt: Callable[[], str],
    ) -> None:
        """`new_attempt`: see object_keys."""
        self._new_attempt = new_attempt
        self._blobs = blobs
        self._payloads = payloads
        self._runs = runs
        self._wall_clock = wall_clock

    def open(self, command: OpenRun) -> None:
        """Have the run in its engine, from its snapshot or from its seed."""
        key = command.snapshot_key
        state = None if key is None else read_snapshot(read_patiently(lambda: self._blobs.get_object(key)))
        self._runs.engines_of(command.run).training.open_run(command.run, state)
        self._runs.add(command.run, command.snapshot_seq_id)

    def load(self, item: WorkItem) -> Callable[[], Product]:
        """Replace a run's weights by a checkpoint's."""
        run = self._runs.get(item.run_id)
        request = self._payloads.load_weights(item)
        files = read_patiently(lambda: self._blobs.get_object(request.key))
        state = read_checkpoint(files, run.spec, request.optimizer)
        run.engines.training.load_weights(item.run_id, state, request.optimizer)
        return lambda: Product(encode_json({"path": request.path, "model_id": item.run_id, "type": "load_weights"}))

    def save_for_training(self, item: WorkItem) -> Callable[[], Product]:
        """Copy the state now; the checkpoint is durable when the returned function has run."""
        run = self._runs.get(item.run_id)
        request = self._payloads.save_weights(item)
        key = self._key(item, "weights", request.path)
        state = run.engines.training.export_run(item.run_id)

        def produce() -> Product:
            files = training_files(run.spec, state)
            saved = self._write(item, key, "weights", request.path, files, request.ttl_seconds, request.user_metadata)
            saved = replace(saved, may_replace=request.overwrite)
            return Product(encode_json({"path": _tinker_path(saved), "type": "save_weights"}), saved)

        return produce

    def save_for_sampler(self, item: WorkItem) -> Callable[[], Product]:
        """As `save_for_training`, named or for a new sampling session, which need not wait for the files' way back."""
        run = self._runs.get(item.run_id)
        request = self._payloads.save_weights_for_sampler(item)
        copy = run.engines.training.copy_adapter(item.run_id)
        name = request.path or ""
        key = self._key(item, "sampler_weights", name)
        run.engines.held.put(key, copy.adapter)

        def produce() -> Product:
            files = sampler_files(run.spec, copy.to_host())
            saved = self._write(item, key, "sampler_weights", name, files, request.ttl_seconds, request.user_metadata)
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
        key = self._key(item, "external_weights", request.path)
        copy = run.engines.training.copy_adapter(item.run_id)

        def produce() -> Product:
            files = external_files(run.spec, copy.to_host(), request.age_encryption_recipients or ())
            saved = self._write(item, key, "external_weights", request.path, files, request.ttl_seconds, None)
            body = {"path": _tinker_path(saved), "size_bytes": saved.size_bytes, "type": "save_weights_external"}
            return Product(encode_json(body), saved)

        return produce

    def snapshot(self, run: OpenedRun) -> Callable[[], Report]:
        """Copy the whole state now; the returned function makes it durable."""
        run_id, seq_id = run.spec.run_id, run.last_seq_id
        state = run.engines.training.export_run(run_id)
        key = snapshot_key(run_id, seq_id, self._new_attempt())

        def write() -> Report:
            size_bytes = self._blobs.put_object(key, snapshot_files(run.spec, state))
            return RunSnapshotted(run_id, seq_id, key, size_bytes)

        return write

    def _key(self, item: WorkItem, kind: CheckpointKind, name: str) -> str:
        # One that replaces a checkpoint leaves the old files whole until the row points here.
        return checkpoint_key(item.run_id, kind, name, item.request_id, self._new_attempt())

    def _write(
        self,
        item: WorkItem,
        key: str,
        kind: CheckpointKind,
        name: str,
        files: dict[str, bytes],
        ttl_s: float | None,
        user_metadata: dict[str, str] | None,
    ) -> SavedCheckpoint:
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
