"""Contract 37, from end to end: a checkpoint past its time is gone from the API and from the disk."""

import contextlib
import sqlite3
from pathlib import Path

import pytest
import tinker

from tests.contracts.loops import connect, new_run
from tests.contracts.saved_state import stored_objects
from tests.live_server import LiveServer, start_server
from tests.sdk.test_checkpoints import disk_bytes


def let_an_hour_pass(server: LiveServer) -> None:
    """For checkpoints; the server is down."""
    with contextlib.closing(sqlite3.connect(server.data_dir / "openrl.db")) as database, database:
        database.execute("UPDATE checkpoints SET created_at = created_at - 3601, expires_at = expires_at - 3601")


@pytest.mark.sdk("TrainingClient.save_state", "RestClient.copy_weights")
def test_checkpoints_past_their_time_are_gone_and_their_bytes_free(tiny_model_dir: Path, tmp_path: Path):
    live = start_server(tiny_model_dir, tmp_path)
    rest = tinker.RestClient(base_url=live.url, api_key=live.key)
    with connect(live.url, live.key) as alice:
        run = new_run(alice, rank=32)
        gone = [run.save_state("gone", ttl_seconds=3600).result().path]
        gone.append(run.save_weights_for_sampler("gone", ttl_seconds=3600).result().path)
        gone.append(run.save_weights_external("gone", ttl_seconds=3600).result().path)
        shared = run.save_state("shared", ttl_seconds=3600).result().path
        kept = [run.save_state("kept").result().path, rest.copy_weights(shared, "p", ttl_seconds=7200).result()]
    sizes = {c.tinker_path: c.size_bytes or 0 for c in rest.list_user_checkpoints().result().checkpoints}
    assert live.stop() == 0
    before = disk_bytes(tmp_path)
    let_an_hour_pass(live)
    live = start_server(tiny_model_dir, tmp_path)
    rest = tinker.RestClient(base_url=live.url, api_key=live.key)
    listed = rest.list_user_checkpoints().result().checkpoints
    assert {each.tinker_path for each in listed} == set(kept)
    for path in (*gone, shared):
        with pytest.raises(tinker.NotFoundError):
            rest.get_weights_info_by_tinker_path(path).result()
    assert before - disk_bytes(tmp_path) == sum(sizes[path] for path in gone)
    assert not any(stored_objects(path, tmp_path) for path in gone)
    assert stored_objects(shared, tmp_path)  # the copy has the files
    assert live.stop() == 0
