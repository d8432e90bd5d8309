"""A real S3 server of moto's on loopback."""

import logging
import uuid
from dataclasses import dataclass

import boto3
from moto.server import ThreadedMotoServer

from openrl.config import StoreConfig

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test-key-id",
    "AWS_SECRET_ACCESS_KEY": "test-secret-never-shown",
    "AWS_REGION": "us-east-1",
}


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where a test's objects are."""

    name: str
    endpoint: str

    @property
    def url(self) -> str:
        """With a prefix, as `store.blobs_url` takes it."""
        return f"s3://{self.name}/some/where"

    def config(self, endpoint: str = "") -> StoreConfig:
        """The configuration of a store there, at another address if one is given."""
        return StoreConfig(blobs_url=self.url, s3_endpoint=endpoint or self.endpoint)

    def everything(self) -> list[str]:
        """All keys in it."""
        return sorted(each["Key"] for each in self._client().list_objects_v2(Bucket=self.name).get("Contents", []))

    def overwrite(self, key: str, data: bytes) -> None:
        """Behind the back of whoever uses it."""
        self._client().put_object(Bucket=self.name, Key=key, Body=data)

    def _client(self):  # pyright: ignore[reportUnknownParameterType]
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ENVIRONMENT["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
            region_name=ENVIRONMENT["AWS_REGION"],
        )


class S3Server:
    """Until `stop`."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self.host, self.port = self._server.get_host_and_port()

    def new_bucket(self) -> Bucket:
        """An empty one."""
        bucket = Bucket(f"bucket-{uuid.uuid4().hex[:12]}", f"http://{self.host}:{self.port}")
        bucket._client().create_bucket(Bucket=bucket.name)
        return bucket

    def stop(self) -> None:
        """End the server."""
        self._server.stop()
