from pathlib import Path

import pytest

from openrl.config import StoreConfig
from openrl.errors import InvalidRequest, Unavailable
from openrl.store.blobs import DirectoryBlobs
from openrl.store.connect import connect
from openrl.store.open_blobs import open_blobs
from openrl.store.remote import Patience
from openrl.store.remote_blobs import RemoteBlobs
from tests.s3_server import Bucket


def test_the_url_says_what_kind_of_store_it_is(tmp_path: Path):
    default = open_blobs(StoreConfig(), tmp_path / "default")
    named = open_blobs(StoreConfig(blobs_url=f"file://{tmp_path}/named%20here"), tmp_path / "default")
    assert isinstance(default, DirectoryBlobs)
    named.put_payloads([b"x"])
    assert (tmp_path / "named here" / "packs").is_dir()
    default.close()
    named.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blobs_url": "ftp://host/dir"}, "store.blobs_url is 'ftp://host/dir'; it must be one of file:///DIRECTORY"),
        ({"blobs_url": "bucket"}, "it must be one of"),
        ({"blobs_url": "file://host/dir"}, "a directory is file:///PATH"),
        ({"blobs_url": "s3://"}, "it must be one of"),
        ({"blobs_url": "az://container/p"}, "'az://container/p' cannot be used"),  # without an account
        ({"blobs_url": "s3://b/p", "s3_endpoint": "http://10.0.0.1:9000"}, "it must be https://"),
        ({"blobs_url": "s3://b/p", "s3_endpoint": "http://127.0.0.1.example.com"}, "it must be https://"),
        ({"blobs_url": "s3://b/p", "s3_endpoint": "minio:9000"}, "it must be https://"),
    ],
)
def test_a_store_that_cannot_be_meant_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], message: str
):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(InvalidRequest, match=message):
        open_blobs(StoreConfig(**settings), tmp_path)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "settings",
    [
        {"blobs_url": "s3://key:sesame@bucket/prefix"},
        {"blobs_url": "s3://bucket/prefix?token=sesame"},
        {"blobs_url": "s3://bucket", "s3_endpoint": "https://key:sesame@host"},
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(tmp_path: Path, settings: dict[str, str]):
    with pytest.raises(InvalidRequest, match="credentials belong into the environment") as caught:
        open_blobs(StoreConfig(**settings), tmp_path)  # pyright: ignore[reportArgumentType]
    assert "sesame" not in str(caught.value)


def test_plain_http_to_another_machine_can_be_allowed(tmp_path: Path):
    config = StoreConfig(blobs_url="s3://bucket", s3_endpoint="http://minio:9000", s3_allow_http=True)
    open_blobs(config, tmp_path).close()


def test_a_plain_http_endpoint_of_the_environment_alone_is_not_spoken_to(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.endpoint)
    blobs = RemoteBlobs(connect(StoreConfig(blobs_url=bucket.url), Patience(retry_s=1.0)), tmp_path, 2**20)
    with pytest.raises(Unavailable, match=r"plain http, which store\.s3_allow_http permits"):
        blobs.check()
    blobs.close()


def test_checking_a_store_writes_to_it(bucket: Bucket, tmp_path: Path):
    blobs = open_blobs(bucket.config(), tmp_path)
    blobs.check()
    assert [key.rpartition("/")[2] for key in bucket.everything()] == ["clock"]
    blobs.close()
