"""Training through the real SDK over HTTP."""

from typing import Any

import numpy as np
import pytest
import tinker
import torch
from tinker import types

from openrl.protocol.codec import decode_forward_backward
from openrl.protocol.datum import SparseCsr
from tests.gateway.gateway_server import MODEL, GatewayServer

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


def make_datum(tokens: list[int], **inputs: Any) -> types.Datum:
    given = inputs or {"target_tokens": tokens, "weights": [1.0] * len(tokens)}
    return types.Datum(model_input=types.ModelInput.from_ints(tokens), loss_fn_inputs=given)


@pytest.fixture
def trainer(alice: tinker.ServiceClient) -> tinker.TrainingClient:
    return alice.create_lora_training_client(base_model=MODEL.name, rank=8, seed=7).result()


def test_a_training_loop_runs_and_numbers_come_back_in_order(trainer: tinker.TrainingClient, server: GatewayServer):
    data = [make_datum([i, i + 1, i + 2]) for i in range(1, 6)]
    backward = trainer.forward_backward(data, "cross_entropy")
    step = trainer.optim_step(types.AdamParams(learning_rate=1e-3))
    outputs = backward.result().loss_fn_outputs
    assert [output["logprobs"].tolist()[0] for output in outputs] == [-1.0, -2.0, -3.0, -4.0, -5.0]
    assert backward.result().metrics["loss:sum"] == 5.0
    assert step.result().metrics == {"grad_norm": 1.5}
    assert [(row.kind, row.seq_id) for row in server.scheduler.log] == [
        ("create_model", 0),
        ("forward_backward", 1),
        ("optim_step", 2),
    ]
    assert server.scheduler.log[1].num_tokens == 15


def test_forward_is_queued_as_its_own_kind(trainer: tinker.TrainingClient, server: GatewayServer):
    result = trainer.forward([make_datum([3, 4])], "cross_entropy").result()
    assert result.loss_fn_outputs[0]["logprobs"].tolist() == [-3.0, -4.0]
    assert server.scheduler.log[-1].kind == "forward"


def test_chunks_of_one_call_arrive_in_any_order_and_are_merged(trainer: tinker.TrainingClient, server: GatewayServer):
    data = [make_datum([i % 500, 1]) for i in range(2500)]
    result = trainer.forward_backward(data, "cross_entropy").result()
    assert [output["logprobs"].tolist()[0] for output in result.loss_fn_outputs] == [
        -float(i % 500) for i in range(2500)
    ]
    assert sorted(row.seq_id for row in server.scheduler.log) == [0, 1, 2, 3]


def test_matrix_and_sparse_targets_arrive_as_they_were_sent(trainer: tinker.TrainingClient, server: GatewayServer):
    targets = torch.full((6, 8), -1, dtype=torch.int64)
    targets[2, 0], targets[5, 1] = 7, 9
    weights = torch.zeros((6, 8))
    weights[2, 0], weights[5, 1] = 0.5, -1.0
    csr = {
        "target_tokens": types.TensorData.from_torch_sparse(targets, pad_value=-1),
        "weights": types.TensorData.from_torch_sparse(weights),
    }
    sparse = make_datum([1, 2, 3, 4, 5, 6], **csr)
    dense = make_datum([5, 6], target_tokens=np.array([[1, 2], [3, 4]]), weights=np.ones((2, 2), np.float32))
    result = trainer.forward_backward([sparse, dense], "cross_entropy").result()
    assert [output["logprobs"].shape for output in result.loss_fn_outputs] == [[6, 8], [2, 2]]
    body = server.blobs.get_payload(server.scheduler.log[-1].payload_ref)
    received = decode_forward_backward(body).data[0].loss_inputs["target_tokens"]
    assert isinstance(received, SparseCsr)
    assert received.values.tolist() == [7, 9]


def test_rl_losses_take_their_settings(trainer: tinker.TrainingClient, server: GatewayServer):
    datum = make_datum([1, 2], target_tokens=[2, 3], logprobs=[-1.0, -1.0], advantages=[1.0, -1.0])
    config = {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}
    trainer.forward_backward([datum], "ppo", loss_fn_config=config).result()
    body = server.blobs.get_payload(server.scheduler.log[-1].payload_ref)
    assert decode_forward_backward(body).loss_fn_config == config


def test_a_custom_loss_computed_by_the_client_works(trainer: tinker.TrainingClient):
    def loss(_: Any, logprobs: list[Any]) -> Any:
        return sum(each.sum() for each in logprobs), {"mine:sum": 1.0}

    result = trainer.forward_backward_custom([make_datum([1, 2])], loss).result()
    assert result.metrics["loss:sum"] == -3.0


def test_a_refused_request_uses_up_its_number(trainer: tinker.TrainingClient, server: GatewayServer):
    with pytest.raises(tinker.BadRequestError, match=r"entry 1 is 512; it must be between 0 and 511"):
        trainer.forward_backward([make_datum([1, 512])], "cross_entropy").result()
    with pytest.raises(tinker.BadRequestError, match="unknown loss_fn"):
        trainer.forward_backward([make_datum([1, 2])], "made_up").result()  # pyright: ignore[reportArgumentType]
    with pytest.raises(tinker.BadRequestError, match=r"beta1 is 1\.5"):
        trainer.optim_step(types.AdamParams(beta1=1.5)).result()
    trainer.optim_step(types.AdamParams()).result()
    assert [(row.kind, row.seq_id) for row in server.scheduler.log[1:]] == [("optim_step", 4)]
    _, first_missing, _ = server.call(server.store.run_progress(trainer.model_id))
    assert first_missing == 5


def test_a_failed_request_is_an_error_with_its_category(trainer: tinker.TrainingClient, server: GatewayServer):
    server.scheduler.fails = lambda row: "datum 3: loss is not finite" if row.kind == "forward_backward" else None
    with pytest.raises(tinker.RequestFailedError, match="datum 3: loss is not finite") as caught:
        trainer.forward_backward([make_datum([1, 2])], "cross_entropy").result()
    assert str(caught.value.category) in ("user", "RequestErrorCategory.User")


def test_info_names_the_model_its_tokenizer_and_rank(trainer: tinker.TrainingClient):
    info = trainer.get_info()
    assert (info.model_data.model_name, info.lora_rank, info.is_lora) == (MODEL.name, 8, True)
    assert trainer.model_id.endswith(":train:0")


def test_training_continues_from_a_checkpoint_with_its_shape(
    alice: tinker.ServiceClient, trainer: tinker.TrainingClient, server: GatewayServer
):
    path = trainer.save_state("step-1", user_metadata={"step": "1"}).result().path
    assert path == f"tinker://{trainer.model_id}/weights/step-1"
    resumed = alice.create_training_client_from_state_with_optimizer(path).result()
    assert resumed.get_info().lora_rank == 8
    assert resumed.model_id.endswith(":train:1")
    load = server.scheduler.loads[-1]
    assert (load.path, load.optimizer) == (path, True)
    assert "optimizer.safetensors" in server.blobs.list_object(load.key)
    resumed.forward_backward([make_datum([1, 2])], "cross_entropy").result()
    fresh = alice.create_training_client_from_state(path).result()
    assert fresh.model_id.endswith(":train:2")
    assert server.scheduler.loads[-1].optimizer is False


def test_a_checkpoint_loads_into_a_running_model(trainer: tinker.TrainingClient, server: GatewayServer):
    path = trainer.save_state("a").result().path
    with pytest.warns(FutureWarning, match="DEPRECATED"):
        trainer.load_state(path).result()  # pyright: ignore[reportDeprecated]
    assert server.scheduler.loads[-1].path == path
    assert server.scheduler.log[-1].seq_id == 2


def test_a_taken_name_is_refused_at_once_unless_it_may_be_overwritten(trainer: tinker.TrainingClient):
    trainer.save_state("a").result()
    with pytest.raises(tinker.BadRequestError, match="exists already"):
        trainer.save_state("a").result()
    trainer.save_state("a", overwrite=True).result()
    assert trainer.save_weights_for_sampler("a").result().path == f"tinker://{trainer.model_id}/sampler_weights/a"


def test_models_settings_and_ranks_that_are_not_served_are_refused(alice: tinker.ServiceClient):
    with pytest.raises(tinker.NotFoundError, match="served: tiny/llama"):
        alice.create_lora_training_client(base_model="other/model").result()
    with pytest.raises(tinker.BadRequestError, match="rank is 1000; it must be between 1 and 256"):
        alice.create_lora_training_client(base_model=MODEL.name, rank=1000).result()
