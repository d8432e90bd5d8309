"""Clients of two tenants on the shared server, as in tests/contracts, and weights with their slow twin."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import tinker

from tests.contracts.conftest import (
    alice,
    bob,
    bob_raw,
    bob_rest,
    http_client,
    no_sockets_left_to_later_tests,
    raw,
    rest,
)
from tests.contracts.loops import new_run, train
from tests.contracts.reference_model import ReferenceModel
from tests.contracts.saved_state import download
from tests.live_server import LiveServer

__all__ = ["alice", "bob", "bob_raw", "bob_rest", "no_sockets_left_to_later_tests", "raw", "rest"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The SDK leaves its sockets to the garbage collector, which complains of each."""
    for item in items:
        if "tests/sdk/" in item.nodeid:
            item.add_marker(pytest.mark.filterwarnings("ignore:DEPRECATED:FutureWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))


@dataclass(frozen=True, slots=True)
class Trained:
    """Weights that alice has trained and saved, and the same weights in plain PEFT."""

    path: str
    sampler: tinker.SamplingClient
    twin: ReferenceModel


@pytest.fixture(scope="package")
def trained(
    server: LiveServer, alice: tinker.ServiceClient, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    run = new_run(alice, rank=8)
    train(run, 6)
    path = run.save_weights_for_sampler("trained").result().path
    with http_client(server.url, server.key) as http:
        adapter = download(http, path, tmp_path_factory.mktemp("adapter"))
    sampler = alice.create_sampling_client(model_path=path).result()
    return Trained(path, sampler, ReferenceModel(tiny_model_dir, adapter))
