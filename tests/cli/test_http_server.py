import resource

import pytest

from openrl.cli.http_server import bind, create_http_server, url_of
from openrl.config import GatewayConfig
from openrl.errors import Unavailable


def test_port_0_takes_a_free_port():
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://127.0.0.1:{port}"


def test_a_port_in_use_is_refused_with_a_remedy():
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(Unavailable, match=rf"cannot listen on 127.0.0.1:{port}: .* --port 0"):
            bind("127.0.0.1", port)


def test_a_host_that_does_not_exist_is_refused():
    with pytest.raises(Unavailable, match=r"cannot listen on 999.1.1.1:80"):
        bind("999.1.1.1", 80)


def test_the_wildcard_address_is_shown_as_this_machine():
    with bind("0.0.0.0", 0) as listener:
        assert url_of(listener).startswith("http://127.0.0.1:")


def test_a_server_may_hold_all_its_connections_if_the_system_allows_it():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    try:
        bounds = GatewayConfig()
        create_http_server(None, bounds)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(bounds.max_connections, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
