"""Both optimizer families through the SDK: created, stepped, saved, resumed, never mixed up."""

from pathlib import Path

import pytest
import tinker
from tinker import types
from tinker.types.optimizer import OptimizerConfigBase

from tests.contracts.loops import STEP, batch, numbers
from tests.contracts.saved_state import same_state, state_of
from tests.live_server import MODEL_NAME, LiveServer

CONFIG = types.DimuonOptimizerConfig()
PARAMS = types.DimuonParams(learning_rate=1e-2, grad_clip_norm=1.0)


def new_run(service: tinker.ServiceClient) -> tinker.TrainingClient:
    return service.create_lora_training_client(MODEL_NAME, rank=4, seed=3, optimizer=CONFIG).result()


def train(run: tinker.TrainingClient, num_steps: int, first: int = 0) -> list[float]:
    losses: list[float] = []
    for number in range(first, first + num_steps):
        passed, stepped = run.forward_backward(batch(3, 0), "cross_entropy"), run.optim_step(PARAMS)
        losses.append(numbers(passed.result()).loss)
        assert (stepped.result().metrics or {})["num_steps"] == number + 1
    return losses


@pytest.mark.sdk("TrainingClient.optim_step", "ServiceClient.create_lora_training_client", "TrainingClient.get_info")
def test_dimuon_trains_and_says_what_it_is(alice: tinker.ServiceClient, server: LiveServer):
    run = new_run(alice)
    losses = train(run, 5)
    assert losses[-1] < losses[0]
    assert run.get_info().optimizer_config.model_dump() == {"type": "dimuon", "version": 1}
    adam = alice.create_lora_training_client(MODEL_NAME, rank=4).result()
    rest = tinker.RestClient(base_url=server.url, api_key=server.key)
    for each, family in ((run, "dimuon"), (adam, "adamw")):
        paths = each.save_state("made").result().path, each.save_weights_for_sampler("made").result().path
        for path in paths:
            info = rest.get_weights_info_by_tinker_path(path).result()
            assert info.optimizer_config is not None
            assert info.optimizer_config.type == family


@pytest.mark.sdk(
    "TrainingClient.optim_step",
    "ServiceClient.create_training_client_from_state_with_optimizer",
    "ServiceClient.create_training_client_from_state",
)
def test_dimuon_goes_on_from_its_checkpoint(alice: tinker.ServiceClient, server: LiveServer):
    run = new_run(alice)
    train(run, 2)
    path = run.save_state("middle").result().path
    resumed = alice.create_training_client_from_state_with_optimizer(path).result()
    assert resumed.get_info().optimizer_config.type == "dimuon"
    assert train(run, 2, 2) == train(resumed, 2, 2)
    assert same_state(state_of(run, Path(server.data_dir)), state_of(resumed, Path(server.data_dir)))
    plain = alice.create_training_client_from_state(path).result()
    assert plain.get_info().optimizer_config.type == "adamw"


@pytest.mark.sdk("TrainingClient.optim_step")
def test_parameters_of_the_other_family_are_refused_naming_both(alice: tinker.ServiceClient):
    run = new_run(alice)
    run.forward_backward(batch(1), "cross_entropy").result()
    with pytest.raises(tinker.BadRequestError, match="of type 'adamw'; the run is trained by 'dimuon'"):
        run.optim_step(STEP).result()
    run.optim_step(PARAMS).result()
    adam = alice.create_lora_training_client(MODEL_NAME, rank=4).result()
    adam.forward_backward(batch(1), "cross_entropy").result()
    with pytest.raises(tinker.BadRequestError, match="of type 'dimuon'; the run is trained by 'adamw'"):
        adam.optim_step(PARAMS).result()
    adam.optim_step(STEP).result()


@pytest.mark.sdk("TrainingClient.load_state_with_optimizer")
@pytest.mark.filterwarnings("ignore:DEPRECATED:FutureWarning")
def test_optimizer_state_of_the_other_family_is_refused(alice: tinker.ServiceClient):
    run = new_run(alice)
    path = run.save_state("state").result().path
    adam = alice.create_lora_training_client(MODEL_NAME, rank=4).result()
    with pytest.raises(tinker.BadRequestError, match="optimizer state of dimuon; the run is trained by adamw"):
        adam.load_state_with_optimizer(path).result()  # pyright: ignore[reportDeprecated]


@pytest.mark.sdk("ServiceClient.create_lora_training_client")
def test_unknown_families_are_refused(alice: tinker.ServiceClient):
    for asked in ({"type": "sgd"}, {"type": "dimuon", "version": 2}):
        config = OptimizerConfigBase.model_validate(asked)
        with pytest.raises(tinker.BadRequestError, match=r"there are {'type': 'adamw'} and {'type': 'dimuon'"):
            alice.create_lora_training_client(MODEL_NAME, rank=4, optimizer=config).result()
