"""Clusters whose workers come and go."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The SDK leaves its sockets to the garbage collector, which complains of each."""
    for item in items:
        if "tests/operations/" in item.nodeid:
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))
