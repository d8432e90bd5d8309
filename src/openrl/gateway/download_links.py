"""Signed links: whoever holds one may download one checkpoint for a while, without a key."""

import base64
import hashlib
import hmac
import json
from dataclasses import astuple, dataclass
from datetime import UTC, datetime

from openrl.errors import NotFound


@dataclass(frozen=True, slots=True)
class DownloadGrant:
    """What a link permits."""

    tenant_id: str
    run_id: str
    kind: str
    name: str
    expires_at: float
    file: str = ""  # one file of external weights; empty: the whole as an archive
    share: str = ""  # hash of the token that it was made with, in the place of a tenant
    version: str = ""  # of the files, which no others under the same name have


def sign_grant(grant: DownloadGrant, key: bytes) -> str:
    """The grant as one URL segment that nobody else can make."""
    text = base64.urlsafe_b64encode(json.dumps(astuple(grant)).encode()).decode()
    return f"{text}.{_signature(text, key)}"


def open_grant(token: str, key: bytes, now: float) -> DownloadGrant:
    """Raises NotFound for a token that was not signed with `key`, or has expired."""
    text, _, signature = token.partition(".")
    if not hmac.compare_digest(signature.encode(errors="replace"), _signature(text, key).encode()):
        raise NotFound("this download link is not valid: it was not made by this server, or not copied whole")
    grant = DownloadGrant(*json.loads(base64.urlsafe_b64decode(text)))
    if now > grant.expires_at:
        expired_at = datetime.fromtimestamp(grant.expires_at, UTC).isoformat(timespec="seconds")
        raise NotFound(f"this download link expired at {expired_at}; ask for a new one", "expired", value=expired_at)
    return grant


def version_of(key: str) -> str:
    """What a grant says of the files under an object key."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def check_version(grant: DownloadGrant, key: str) -> None:
    """Raises NotFound for a link to files that have been deleted or replaced since."""
    if grant.version != version_of(key):
        raise NotFound("the files of this download link are no more; ask for a new one", "expired", value=grant.name)


def wrong_link(grant: DownloadGrant, wanted: str) -> NotFound:
    """What is said to the holder of a link that is for something else."""
    return NotFound(f"this download link is for no {wanted}; it is for {grant.kind}/{grant.name} {grant.file}".rstrip())


def _signature(text: str, key: bytes) -> str:
    return hmac.new(key, text.encode(errors="replace"), hashlib.sha256).hexdigest()
