"""The same server with its files in an object store, through the SDK."""

import threading
from pathlib import Path

import tinker

from tests.chaos_proxy import ChaosProxy, Mode
from tests.contracts.conftest import http_client
from tests.contracts.loops import connect, new_run, resume, sample, snapshot, train
from tests.contracts.saved_state import download
from tests.live_server import LiveServer, openrl, start_server
from tests.s3_server import Bucket, S3Server


def save(run: tinker.TrainingClient) -> str:
    return run.save_state("kept").result().path


def start(model_dir: Path, root: Path, bucket: Bucket, endpoint: str = "") -> LiveServer:
    config = root / "openrl.toml"
    config.write_text(f'[store]\nblobs_url = "{bucket.url}"\ns3_endpoint = "{endpoint or bucket.endpoint}"\n')
    return start_server(model_dir, root / "there", "--config", str(config))


def test_training_sampling_and_checkpoints_with_files_in_s3(
    server: LiveServer, tiny_model_dir: Path, tmp_path: Path, bucket: Bucket
):
    there = start(tiny_model_dir, tmp_path, bucket)
    with connect(server.url, server.key) as at_home, connect(there.url, there.key) as alice:
        reference = new_run(at_home)
        expected = train(reference, 3)
        run = new_run(alice)
        for one, other in zip(train(run, 3), expected, strict=True):
            assert str(one) == str(other)
        path = save(run)
        drawn = sample(snapshot(run), [3, 4, 5], max_tokens=6, seed=1)
        assert drawn == sample(snapshot(reference), [3, 4, 5], max_tokens=6, seed=1)
    assert there.stop() == 0
    assert not list((tmp_path / "there" / "blobs").rglob("*.safetensors"))
    assert any("/names/" in key for key in bucket.everything())

    there = start(tiny_model_dir, tmp_path, bucket)
    with connect(there.url, there.key) as alice, connect(there.url, there.other_key) as bob:
        again = resume(alice, path)
        assert sample(snapshot(again), [3, 4, 5], max_tokens=6, seed=1) == drawn
        other = new_run(bob)
        train(other, 1)
        assert len(sample(snapshot(other), [3, 4, 5], max_tokens=6, seed=1)) == 1
    with http_client(there.url, there.key) as http:
        assert (download(http, path, tmp_path / "archive") / "adapter_model.safetensors").stat().st_size > 1000
    assert there.stop() == 0


def test_a_store_that_is_away_for_a_while_costs_only_time(
    server: LiveServer, s3_server: S3Server, tiny_model_dir: Path, tmp_path: Path, bucket: Bucket
):
    proxy = ChaosProxy(s3_server.host, s3_server.port)
    proxy.start()
    there = start(tiny_model_dir, tmp_path, bucket, f"http://127.0.0.1:{proxy.port}")
    with connect(server.url, server.key) as at_home, connect(there.url, there.key) as alice:
        reference, run = new_run(at_home), new_run(alice)
        expected = [one for _ in range(3) for one in train(reference, 2)]
        losses = train(run, 2)
        troubles: tuple[tuple[Mode, int], ...] = (("cut", 1), ("hang", 2000))
        for mode, after_bytes in troubles:
            proxy.set(mode, after_bytes=after_bytes)
            healing = threading.Timer(3.0, proxy.set, ["pass"])
            healing.start()
            losses += train(run, 2)
            healing.join()
        for one, other in zip(losses, expected, strict=True):
            assert str(one) == str(other)
    assert there.stop() == 0
    proxy.stop()


def test_a_server_whose_bucket_is_not_there_says_so_and_ends(tiny_model_dir: Path, tmp_path: Path, bucket: Bucket):
    config = tmp_path / "openrl.toml"
    config.write_text(f'[store]\nblobs_url = "s3://not-{bucket.name}"\ns3_endpoint = "{bucket.endpoint}"\n')
    places = ("--model", f"tiny={tiny_model_dir}", "--data-dir", str(tmp_path), "--config", str(config))
    ended = openrl("serve", "--port", "0", *places)
    assert ended.returncode != 0
    assert "the object store cannot write clock: it answered 404 NoSuchBucket" in ended.stderr
