"""ServiceClient, TrainingClient and SamplingClient: the methods that make clients, train and sample."""
# Deprecated methods are public too:
# pyright: reportDeprecated=false

import pickle
from pathlib import Path

import httpx
import pytest
import tinker
from tinker import types

from tests.contracts.loops import (
    TEXT,
    backward,
    batch,
    connect,
    datum,
    new_run,
    prompt_of,
    resume,
    sample,
    snapshot,
    step_metrics,
    train,
)
from tests.live_server import MODEL_NAME, LiveServer


@pytest.mark.sdk("ServiceClient.create_lora_training_client", "TrainingClient.get_info")
def test_a_run_is_made_and_tells_of_itself(alice: tinker.ServiceClient):
    info = new_run(alice, rank=4).get_info()
    assert (info.model_data.model_name, info.is_lora, info.lora_rank) == (MODEL_NAME, True, 4)


@pytest.mark.sdk("ServiceClient.get_server_capabilities", "RestClient.get_server_capabilities")
def test_capabilities_name_the_models(alice: tinker.ServiceClient, rest: tinker.RestClient):
    models = rest.get_server_capabilities().result().supported_models
    assert alice.get_server_capabilities().supported_models == models
    (model,) = models
    assert (model.model_name, model.max_context_length) == (MODEL_NAME, 256)
    assert model.trainable
    assert model.sampleable


@pytest.mark.sdk("TrainingClient.forward", "TrainingClient.forward_backward", "TrainingClient.optim_step")
def test_forward_gives_what_forward_backward_gives_and_a_step_lowers_the_loss(alice: tinker.ServiceClient):
    run = new_run(alice)
    data = batch(3)
    forward = run.forward(data, "cross_entropy").result()
    before = backward(run, data)
    assert forward.metrics["loss:sum"] == before.loss
    step_metrics(run)
    assert backward(run, data).loss < before.loss


@pytest.mark.sdk("TrainingClient.forward_backward_custom")
def test_a_loss_of_the_clients_own_gives_the_built_in_gradient(alice: tinker.ServiceClient):
    run, twin, data = new_run(alice), new_run(alice), batch(2)
    custom = run.forward_backward_custom(data, lambda _, logprobs: (-sum(each.sum() for each in logprobs), {})).result()
    assert custom.metrics["loss:sum"] == pytest.approx(backward(twin, data).loss, rel=1e-6)
    norms = [step_metrics(each)["grad_norm"] for each in (run, twin)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


@pytest.mark.sdk(
    "TrainingClient.save_state",
    "ServiceClient.create_training_client_from_state",
    "ServiceClient.create_training_client_from_state_with_optimizer",
)
def test_a_run_continues_from_its_state(alice: tinker.ServiceClient, bob: tinker.ServiceClient):
    run = new_run(alice)
    train(run, 2)
    path = run.save_state("state").result().path
    expected = backward(run, batch(2)).loss
    assert backward(resume(alice, path), batch(2)).loss == expected
    assert backward(resume(alice, path, with_optimizer=False), batch(2)).loss == expected
    with pytest.raises(tinker.NotFoundError):
        resume(bob, path)


@pytest.mark.sdk("TrainingClient.load_state", "TrainingClient.load_state_with_optimizer")
def test_a_state_is_loaded_into_a_run(alice: tinker.ServiceClient):
    run = new_run(alice)
    train(run, 2)
    path = run.save_state("state").result().path
    expected = backward(run, batch(2)).loss
    plain, whole = new_run(alice, seed=5), new_run(alice, seed=6)
    plain.load_state(path).result()
    whole.load_state_with_optimizer(path).result()
    assert backward(plain, batch(2)).loss == expected
    assert backward(whole, batch(2)).loss == expected


@pytest.mark.sdk(
    "TrainingClient.save_weights_for_sampler",
    "TrainingClient.create_sampling_client",
    "TrainingClient.save_weights_and_get_sampling_client",
    "ServiceClient.create_sampling_client",
    "SamplingClient.sample",
    "SamplingClient.get_base_model",
)
def test_weights_are_sampled_named_and_unnamed(alice: tinker.ServiceClient, bob: tinker.ServiceClient):
    run = new_run(alice)
    train(run, 2)
    path = run.save_weights_for_sampler("named").result().path
    samplers = [
        run.create_sampling_client(path).result(),
        alice.create_sampling_client(model_path=path).result(),
        snapshot(run),
    ]
    answers = [sample(sampler, TEXT[:5]) for sampler in samplers]
    assert answers[0] == answers[1] == answers[2]
    assert samplers[1].get_base_model() == MODEL_NAME
    assert sample(bob.create_sampling_client(base_model=MODEL_NAME).result(), TEXT[:5]) != answers[0]
    with pytest.raises(tinker.NotFoundError):
        bob.create_sampling_client(model_path=path).result()


@pytest.mark.sdk("SamplingClient.compute_logprobs")
def test_a_prompts_log_probabilities_are_the_trainers(alice: tinker.ServiceClient):
    run = new_run(alice)
    train(run, 1)
    computed = snapshot(run).compute_logprobs(prompt_of(TEXT)).result()
    assert computed[0] is None
    assert computed[1:] == pytest.approx(backward(run, [datum(TEXT)]).logprobs[0], abs=1e-5)


@pytest.mark.sdk("SamplingClient.get_sampler_handle", "SamplingClient.from_sampler_handle")
def test_a_sampler_goes_to_another_process_as_a_handle_or_pickled(
    alice: tinker.ServiceClient, server: LiveServer, monkeypatch: pytest.MonkeyPatch
):
    run = new_run(alice)
    train(run, 1)
    sampler = snapshot(run)
    expected = sample(sampler, TEXT[:4])
    clone = tinker.SamplingClient.from_sampler_handle(sampler.get_sampler_handle(), api_key=server.key)
    assert sample(clone, TEXT[:4]) == expected
    monkeypatch.setenv("TINKER_API_KEY", server.key)
    assert sample(pickle.loads(pickle.dumps(sampler)), TEXT[:4]) == expected
    stranger = tinker.SamplingClient.from_sampler_handle(sampler.get_sampler_handle(), api_key=server.other_key)
    with pytest.raises(tinker.NotFoundError):
        sample(stranger, TEXT[:4])


@pytest.mark.sdk("TrainingClient.get_tokenizer", "SamplingClient.get_tokenizer")
def test_the_tokenizer_is_found_under_the_models_name(
    tiny_model_dir: Path, alice: tinker.ServiceClient, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tiny_model_dir.parent)  # the SDK takes a local directory of the model's name
    run = new_run(alice)
    sampler = alice.create_sampling_client(base_model=MODEL_NAME).result()
    assert run.get_tokenizer().get_vocab() == sampler.get_tokenizer().get_vocab()


@pytest.mark.sdk("ServiceClient.create_rest_client", "RestClient.get_sampler")
def test_a_sampler_tells_of_itself(alice: tinker.ServiceClient, bob_rest: tinker.RestClient):
    run = new_run(alice)
    path = run.save_weights_for_sampler("told").result().path
    alice.create_sampling_client(model_path=path).result()
    rest = alice.create_rest_client()
    session_id = run.get_info().model_id.split(":train:")[0]
    ids = rest.get_session(session_id).result().sampler_ids
    told = [rest.get_sampler(each).result() for each in ids]
    assert (MODEL_NAME, path) in {(each.base_model, each.model_path) for each in told}
    with pytest.raises(tinker.NotFoundError):
        bob_rest.get_sampler(ids[0]).result()


@pytest.mark.sdk("ServiceClient.close")
def test_a_closed_session_takes_no_more_work(server: LiveServer):
    service = connect(server.url, server.key)
    run = new_run(service)
    service.close("success").result()
    with pytest.raises(Exception, match=r"finished|closed|ended"):
        run.optim_step(types.AdamParams(learning_rate=1e-3)).result()


@pytest.mark.sdk("ServiceClient.get_console_url", "TrainingClient.get_console_url")
def test_a_console_url_is_given_without_a_console(alice: tinker.ServiceClient):
    assert alice.get_console_url()
    assert new_run(alice).get_console_url()


@pytest.mark.sdk(
    "ServiceClient.get_telemetry",
    "TrainingClient.get_telemetry",
    "SamplingClient.get_telemetry",
    "RestClient.get_telemetry",
    "AdminClient.get_telemetry",
)
def test_clients_deliver_their_telemetry(server: LiveServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TINKER_TELEMETRY", "1")
    with tinker.ServiceClient(base_url=server.url, api_key=server.key) as service:
        sampler = service.create_sampling_client(base_model=MODEL_NAME).result()
        # Clients without a session share connections by address; those of other tests have no telemetry.
        rest = tinker.RestClient(base_url=f"{server.url}/", api_key=server.key)
        admin = tinker.AdminClient(base_url=f"{server.url}/", api_key=server.key)
        for client in (service, new_run(service), sampler, rest, admin):
            before = num_telemetry(server)
            reporter = client.get_telemetry()
            assert reporter is not None
            reporter.log_fatal_exception_sync(ValueError("an example"))  # returns once it is delivered
            assert num_telemetry(server) > before


def num_telemetry(server: LiveServer) -> float:
    """How many reports the server has taken."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if "http_requests_total{" in line and "/telemetry" in line)
