"""The part of the configuration that says who may come in, and what their clients are told."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A frozen group of settings; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class AuthConfig(Section):
    """Tokens of an identity provider (OpenID Connect) beside API keys; docs/tenants.md has an example."""

    oidc_issuer: str = ""
    """Whose tokens are taken, as their `iss` says it; empty: nobody's."""
    oidc_audience: str = ""
    """What the `aud` of tokens for this server says."""
    oidc_jwks_url: str = ""
    """Where the issuer's public keys are; empty: where its discovery document says."""
    oidc_tenant_claim: str = "org_id"
    """Claim with the name of the tenant. A dot goes into objects: "a.b"."""
    oidc_tenant: str = ""
    """Tenant of tokens without that claim; empty: they are refused."""
    oidc_role_claim: str = "role"
    """Claim with the role, or a list of roles or groups; it never gives more than the user's role here."""
    oidc_roles: dict[str, Literal["admin", "member", "reader"]] = {}
    """What values of that claim stand for, beside "admin", "member" and "reader"."""
    oidc_email_claim: str = "email"
    """Claim with the email address."""
    oidc_auto_create: bool = False
    """Tenants and users come into being when they are first seen; otherwise an admin adds them before."""

    @model_validator(mode="after")
    def _check_urls(self) -> "AuthConfig":
        for name in ("oidc_issuer", "oidc_jwks_url"):
            url: str = getattr(self, name)
            if url and not is_safe_url(url):
                raise ValueError(f"{name} is {url!r}; it must begin with https://, or with http:// on this machine")
        if self.oidc_issuer and not self.oidc_audience:
            raise ValueError("oidc_issuer needs oidc_audience: tokens for other programs must not open this one")
        return self


def is_safe_url(url: str) -> bool:
    """Whether nobody on the way can change what is fetched: https, or this machine."""
    parts = urlsplit(url)
    return bool(parts.hostname) and (
        parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost"))
    )


Flag = bool | Literal["auto"]


class ClientConfig(Section):
    """What the server tells SDK clients to do; "auto" is what docs/client-flags.md found faster."""

    sample_use_retrieve_futures: Flag = "auto"
    """One poll for all samples of a sampling client, in place of one each."""
    sample_join_sampling_session: Flag = "auto"
    """Copies of a sampling client ask for their number, in place of drawing it."""
    sample_cancel_enabled: Flag = "auto"
    """Clients tell of samples that they no longer wait for."""
    sample_cancel_max_batch_size: int = Field(default=64, ge=1)
    """Cancellations that a client sends at once."""
    proto_compress_fwdbwd: Flag = "auto"
    """Clients compress forward_backward bodies with zstd."""
    parallel_fwdbwd_chunks: Flag = "auto"
    """Clients send the chunks of one forward_backward side by side."""
    fwdbwd_max_chunk_len: int = Field(default=0, ge=0)
    """Datums in one chunk; 0: 1024, or gateway.max_datums where that is less."""
    fwdbwd_max_chunk_bytes_count: int = Field(default=0, ge=0)
    """Bytes in one chunk as the client estimates them; a larger datum goes alone. 0: 5 MB, or half of
    gateway.max_body_bytes where that is less."""
    complete_metadata: Flag = "auto"
    """Clients are told the size of a large result before it is sent, and fetch it when they have room."""
    complete_metadata_bytes: int = Field(default=2**20, ge=1)
    """What counts as large."""
