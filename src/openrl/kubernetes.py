"""Speaks to the API of Kubernetes over plain HTTP: the few calls that are needed take no client library."""

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from openrl.errors import Unavailable

SERVICE_ACCOUNT_DIR = Path("/var/run/secrets/kubernetes.io/serviceaccount")
IN_CLUSTER_URL = "https://kubernetes.default.svc"
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Reply:
    """What the API said, whatever its status."""

    status: int
    text: str

    @property
    def object(self) -> dict[str, Any]:
        return json.loads(self.text)


class KubernetesApi:
    """Blocking; with the token and CA of a service account, or over http (`kubectl proxy`) also without."""

    def __init__(self, url: str, account_dir: Path = SERVICE_ACCOUNT_DIR) -> None:
        self._url = urlsplit(url)
        self._account_dir = account_dir

    def namespace(self) -> str:
        """Of the service account. Raises OSError."""
        return (self._account_dir / "namespace").read_text().strip()

    def send(
        self, method: str, path: str, body: Mapping[str, object] | None = None, content_type: str = "application/json"
    ) -> Reply:
        """One request. Raises Unavailable where no reply comes or the server is at fault (429, 5xx)."""
        try:
            headers = {"Content-Type": content_type, **self._authorization()}
            connection = self._connect()
            try:
                connection.request(method, path, None if body is None else json.dumps(body), headers)
                reply = connection.getresponse()
                said = reply.read().decode(errors="replace")
            finally:
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"the Kubernetes API at {self._url.netloc} does not answer: {error}") from error
        if reply.status == http.client.TOO_MANY_REQUESTS or reply.status >= http.client.INTERNAL_SERVER_ERROR:
            raise Unavailable(f"the Kubernetes API refused {method} {path}: {reply.status} {said[:200]}")
        return Reply(reply.status, said)

    def _authorization(self) -> dict[str, str]:
        file = self._account_dir / "token"  # read each time: it is renewed every hour
        if self._url.scheme == "http" and not file.exists():
            return {}
        return {"Authorization": f"Bearer {file.read_text().strip()}"}

    def _connect(self) -> http.client.HTTPConnection:
        host = self._url.hostname or ""
        if self._url.scheme == "http":
            return http.client.HTTPConnection(host, self._url.port, timeout=_TIMEOUT_S)
        trusted = ssl.create_default_context(cafile=str(self._account_dir / "ca.crt"))
        return http.client.HTTPSConnection(host, self._url.port, timeout=_TIMEOUT_S, context=trusted)
