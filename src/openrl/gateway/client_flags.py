"""What clients are told to do: the configured flags, "auto" resolved to what was measured to be faster."""

from collections.abc import Mapping
from typing import Literal

from starlette.requests import Request

from openrl.config import ClientConfig, GatewayConfig
from openrl.store.base import Json

AUTO: Mapping[str, bool | Literal["remote"]] = {
    "sample_use_retrieve_futures": False,
    "sample_join_sampling_session": True,
    "sample_cancel_enabled": True,
    "proto_compress_fwdbwd": "remote",
    "parallel_fwdbwd_chunks": True,
    "complete_metadata": True,
}
"""The figures are in docs/client-flags.md. "remote": on for clients on other machines."""
_REFRESH_S = 300
_CHUNK_DATUMS = 1024
_CHUNK_BYTES = 5_000_000


def is_on(config: ClientConfig, flag: str, is_remote: bool) -> bool:
    """Whether a flag of `AUTO` is on for a client."""
    value = getattr(config, flag)
    if value == "auto":
        value = AUTO[flag]
    return is_remote if value == "remote" else value


def is_remote(request: Request) -> bool:
    """Whether a request came from another machine; what a proxy on this one passes on did not."""
    host = "" if request.client is None else request.client.host
    return host not in ("127.0.0.1", "::1", "")


def static_flags(config: ClientConfig, gateway: GatewayConfig, is_remote: bool) -> Json:
    """The answer to `client/config` (tinker-api §2.1); what is absent has its default in the client."""
    names = (
        "sample_use_retrieve_futures",
        "sample_join_sampling_session",
        "proto_compress_fwdbwd",
        "parallel_fwdbwd_chunks",
    )
    old_clients = {"proto_write_fwdbwd": True, "fwd_via_fwdbwd": True, "create_model_via_load_weights": True}
    return {
        "pjwt_auth_enabled": gateway.jwt_auth,
        "custom_loss_server_side": True,
        **{name: is_on(config, name, is_remote) for name in names},
        "fwdbwd_max_chunk_len": config.fwdbwd_max_chunk_len or min(_CHUNK_DATUMS, gateway.max_datums),
        "fwdbwd_max_chunk_bytes_count": config.fwdbwd_max_chunk_bytes_count
        or min(_CHUNK_BYTES, gateway.max_body_bytes // 2),
        **old_clients,
    }


def dynamic_flags(config: ClientConfig, is_remote: bool) -> Json:
    """The answer to `client/dynamic_config`, which clients ask for again while they run."""
    return {
        "refresh_interval_sec": _REFRESH_S,
        "sample_cancel_enabled": is_on(config, "sample_cancel_enabled", is_remote),
        "sample_cancel_max_batch_size": config.sample_cancel_max_batch_size,
    }
