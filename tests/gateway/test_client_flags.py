"""Which flags clients are told."""

import pytest
from pydantic import ValidationError
from starlette.requests import Request

from openrl.config import ClientConfig, GatewayConfig, load_config
from openrl.gateway.client_flags import AUTO, dynamic_flags, is_on, is_remote, static_flags


def request_from(host: str | None) -> Request:
    return Request({"type": "http", "client": None if host is None else (host, 1), "headers": []})


@pytest.mark.parametrize("flag", AUTO)
def test_a_setting_wins_over_what_was_measured(flag: str):
    for value in (True, False):
        assert is_on(ClientConfig(**{flag: value}), flag, is_remote=not value) is value


def test_bodies_are_compressed_on_the_way_from_other_machines():
    for remote in (True, False):
        assert static_flags(ClientConfig(), GatewayConfig(), remote)["proto_compress_fwdbwd"] is remote
    hosts = ("127.0.0.1", "::1", None, "10.0.0.7", "fd00::1")
    assert [is_remote(request_from(host)) for host in hosts] == [False, False, False, True, True]


def test_chunks_fit_what_the_gateway_takes():
    small = static_flags(ClientConfig(), GatewayConfig(max_datums=16, max_body_bytes=2**20), is_remote=False)
    assert (small["fwdbwd_max_chunk_len"], small["fwdbwd_max_chunk_bytes_count"]) == (16, 2**19)
    large = static_flags(ClientConfig(), GatewayConfig(), is_remote=False)
    assert (large["fwdbwd_max_chunk_len"], large["fwdbwd_max_chunk_bytes_count"]) == (1024, 5_000_000)


def test_flags_come_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENRL_CLIENT__SAMPLE_CANCEL_ENABLED", "false")
    monkeypatch.setenv("OPENRL_CLIENT__SAMPLE_CANCEL_MAX_BATCH_SIZE", "3")
    told = dynamic_flags(load_config().client, is_remote=False)
    assert (told["sample_cancel_enabled"], told["sample_cancel_max_batch_size"]) == (False, 3)
    monkeypatch.setenv("OPENRL_CLIENT__SAMPLE_CANCEL_ENABLED", "perhaps")
    with pytest.raises(ValidationError):
        load_config()
