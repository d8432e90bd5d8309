"""Opens the blob store that the configuration names."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from openrl.config import StoreConfig
from openrl.errors import InvalidRequest
from openrl.store.base import Blobs
from openrl.store.blobs import DirectoryBlobs
from openrl.store.connect import connect
from openrl.store.remote_blobs import RemoteBlobs


def open_blobs(config: StoreConfig, default_dir: Path) -> Blobs:
    """`store.blobs_url`, or `default_dir` where it is empty, in which an object store's local copies lie too.

    An object store is not asked for anything yet (`Blobs.check` does). Raises InvalidRequest for a setting that cannot
    be meant, Unavailable for a directory that cannot be used.
    """
    if not config.blobs_url:
        return DirectoryBlobs(default_dir, config.pack_bytes)
    if config.blobs_url.startswith("file://"):
        url = urlsplit(config.blobs_url)
        if url.netloc or not url.path.strip("/"):
            raise InvalidRequest(f"store.blobs_url is {config.blobs_url!r}; a directory is file:///PATH")
        return DirectoryBlobs(Path(unquote(url.path)), config.pack_bytes)
    return RemoteBlobs(connect(config), default_dir / "cache", config.cache_bytes)
