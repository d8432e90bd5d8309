"""Shares through the SDK: bob continues and samples what alice lends him, until she takes it back."""

import pytest
import tinker

from tests.contracts.loops import new_run, train
from tests.contracts.raw_api import RawApi
from tests.contracts.saved_state import same_state, state_of
from tests.live_server import LiveServer, openrl
from tests.sdk.test_copy_weights import run_id_of


@pytest.mark.sdk(
    "RestClient.copy_weights",
    "ServiceClient.create_training_client_from_state",
    "ServiceClient.create_training_client_from_state_with_optimizer",
)
def test_a_shared_checkpoint_is_loaded_and_copied_until_its_share_is_revoked(
    server: LiveServer, alice: tinker.ServiceClient, bob: tinker.ServiceClient, raw: RawApi, bob_rest: tinker.RestClient
):
    run = new_run(alice)
    train(run, 2)
    path = run.save_state("lent").result().path
    address = f"training_runs/{run_id_of(path)}/checkpoints/weights/lent"
    share = raw.http.post(f"{address}/shares", json={"ttl_seconds": 600}).json()
    token = share["token"]
    with pytest.raises(tinker.NotFoundError):
        bob.create_training_client_from_state(path).result()
    theirs = bob.create_training_client_from_state_with_optimizer(path, weights_access_token=token).result()
    assert train(run, 1) == train(theirs, 1)
    assert same_state(state_of(run, server.data_dir), state_of(theirs, server.data_dir))
    copy = bob_rest.copy_weights(path, "borrowed", weights_access_token=token).result()
    assert openrl("admin", "share", "revoke", share["share_id"], "--data-dir", str(server.data_dir)).returncode == 0
    with pytest.raises(tinker.AuthenticationError, match="weights access token"):
        bob.create_training_client_from_state(path, weights_access_token=token).result()
    assert bob.create_training_client_from_state(copy).result()
