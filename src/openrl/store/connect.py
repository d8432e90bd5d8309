"""Finds the object store that the configuration names, and refuses what cannot be meant."""

from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from openrl.config import StoreConfig
from openrl.errors import InvalidRequest
from openrl.store.remote import Patience, RemoteStore

if TYPE_CHECKING:
    from obstore.store import S3Config

SCHEMES = ("s3", "gs", "az")
_ALLOWED = "file:///DIRECTORY, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX"


def connect(config: StoreConfig, patience: Patience | None = None) -> RemoteStore:
    """The store of `store.blobs_url`; credentials come from the environment. Raises InvalidRequest."""
    url = config.blobs_url
    for name, value in (("blobs_url", url), ("s3_endpoint", config.s3_endpoint)):
        if any(mark in value for mark in "@?#"):  # not repeated here: it may be a password
            raise InvalidRequest(f"store.{name} is more than an address; credentials belong into the environment")
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.netloc:
        raise InvalidRequest(f"store.blobs_url is {url!r}; it must be one of {_ALLOWED}", value=url, bound=_ALLOWED)
    allow_http = config.s3_allow_http or _is_loopback(config.s3_endpoint)
    s3 = _s3_options(config, allow_http) if parts.scheme == "s3" else None
    return RemoteStore(url, patience or Patience(), allow_http=allow_http, s3=s3)


def _s3_options(config: StoreConfig, allow_http: bool) -> "S3Config":
    endpoint = config.s3_endpoint
    if endpoint and not endpoint.startswith("https://") and not (allow_http and endpoint.startswith("http://")):
        raise InvalidRequest(
            f"store.s3_endpoint is {endpoint!r}; it must be https:// unless it is on this machine or "
            "store.s3_allow_http is set",
            value=endpoint,
        )
    options: S3Config = {}
    if endpoint:
        options["endpoint"] = endpoint
    if config.s3_region:
        options["region"] = config.s3_region
    return options


def _is_loopback(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
