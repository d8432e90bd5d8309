"""Clients of two tenants on the shared server, as in tests/contracts."""

import pytest

from tests.contracts.conftest import alice, bob, bob_raw, bob_rest, no_sockets_left_to_later_tests, raw, rest

__all__ = ["alice", "bob", "bob_raw", "bob_rest", "no_sockets_left_to_later_tests", "raw", "rest"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The SDK leaves its sockets to the garbage collector, which complains of each."""
    for item in items:
        if "tests/sdk/" in item.nodeid:
            item.add_marker(pytest.mark.filterwarnings("ignore:DEPRECATED:FutureWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))
