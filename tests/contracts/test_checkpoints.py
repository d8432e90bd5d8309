"""Contracts 33-36: saving, going on, and what other tools make of the files."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors
import tinker
import torch
from peft import PeftModel
from tinker import types
from transformers import AutoModelForCausalLM

from tests.contracts.loops import (
    STEP,
    TEXT,
    backward,
    batch,
    new_run,
    prompt_of,
    resume,
    sample,
    snapshot,
    step_metrics,
    train,
)
from tests.contracts.raw_api import RawApi
from tests.contracts.saved_state import download, gradient_of, read_state, same_state, same_tensors, state_of
from tests.live_server import LiveServer

PICKLES = re.compile(r"pickle|(?<!safetensors\.)torch\.load\(|shelve|marshal|joblib|np\.load\(")


# 33
def test_a_run_resumed_with_its_optimizer_goes_on_bit_for_bit(server: LiveServer, alice: tinker.ServiceClient):
    run = new_run(alice)
    train(run, 3)
    path = run.save_state("half").result().path
    resumed = resume(alice, path)
    expected = train(run, 3, first=3)
    assert train(resumed, 3, first=3) == expected
    assert same_state(state_of(resumed, server.data_dir), state_of(run, server.data_dir))


# 33
def test_a_checkpoint_loaded_into_its_run_takes_it_back(alice: tinker.ServiceClient):
    run = new_run(alice)
    train(run, 2)
    path = run.save_state("early").result().path
    expected = train(run, 2, first=2)
    backward(run, batch(2))  # gradients of weights that are about to go
    with pytest.warns(FutureWarning, match="DEPRECATED"):
        run.load_state_with_optimizer(path).result()  # pyright: ignore[reportDeprecated]
    assert train(run, 2, first=2) == expected


# 33
def test_a_run_resumed_without_its_optimizer_starts_adam_afresh(server: LiveServer, alice: tinker.ServiceClient):
    run = new_run(alice)
    train(run, 3)
    path = run.save_state("half").result().path
    probe, resumed = resume(alice, path), resume(alice, path, with_optimizer=False)
    loaded = state_of(resumed, server.data_dir)
    assert same_tensors(loaded.adapter, read_state(path, server.data_dir).adapter)
    assert not any(value.any() for value in loaded.optimizer.values())
    backward(probe, batch(3))
    gradient = gradient_of(probe, server.data_dir)
    backward(resumed, batch(3))
    assert step_metrics(resumed, types.AdamParams(learning_rate=1e-2, eps=1e-8))["num_steps"] == 1.0
    after = state_of(resumed, server.data_dir).adapter
    for name, value in loaded.adapter.items():
        step = gradient[name] / (gradient[name].abs() + 1e-8)  # Adam's first: both moments are the gradient's
        torch.testing.assert_close(after[name], value - 1e-2 * step, rtol=1e-5, atol=1e-6)


# 34
def test_a_name_exists_once_per_kind(server: LiveServer, alice: tinker.ServiceClient, rest: tinker.RestClient):
    run = new_run(alice)
    train(run, 1)
    first = run.save_state("same").result().path
    sampler = run.save_weights_for_sampler("same").result().path
    before = read_state(first, server.data_dir)
    train(run, 1)
    with pytest.raises(tinker.BadRequestError, match="exists already"):
        run.save_state("same").result()
    with pytest.raises(tinker.BadRequestError, match="exists already"):
        run.save_weights_for_sampler("same").result()
    assert same_state(read_state(first, server.data_dir), before)
    listed = rest.list_checkpoints(run.model_id).result().checkpoints
    assert sorted(each.tinker_path for each in listed) == sorted([first, sampler])


# 34
def test_an_overwritten_checkpoint_is_the_new_one(
    server: LiveServer, alice: tinker.ServiceClient, rest: tinker.RestClient
):
    run = new_run(alice)
    run.save_state("again", user_metadata={"step": "0"}).result()
    train(run, 1)
    path = run.save_state("again", overwrite=True).result().path
    assert same_state(state_of(resume(alice, path), server.data_dir), state_of(run, server.data_dir))
    [listed] = [each for each in rest.list_checkpoints(run.model_id).result().checkpoints if each.tinker_path == path]
    assert not listed.user_metadata


# 34
def test_what_is_listed_after_a_save_is_whole_on_disk(server: LiveServer, alice: tinker.ServiceClient):
    run = new_run(alice)
    train(run, 1)
    saves = [run.save_state(f"s{i}") for i in range(4)]
    states = [read_state(save.result().path, server.data_dir) for save in saves]
    assert all(same_state(state, states[0]) for state in states)
    assert states[0].adapter


# 35
@pytest.mark.parametrize("kind", ["weights", "sampler_weights"])
@pytest.mark.parametrize("flags", [{}, {"train_unembed": False}, {"train_attn": False, "train_unembed": False}])
def test_peft_loads_an_adapter_and_gives_the_samplers_logprobs(
    alice: tinker.ServiceClient, raw: RawApi, tiny_model_dir: Path, tmp_path: Path, kind: str, flags: dict[str, bool]
):
    run = new_run(alice, rank=5, **flags)
    train(run, 3)
    saved = run.save_state("x") if kind == "weights" else run.save_weights_for_sampler("x")
    adapter = download(raw.http, saved.result().path, tmp_path)
    expected = snapshot(run).compute_logprobs(prompt_of(TEXT)).result()[1:]
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    peft: Any = PeftModel.from_pretrained(base, str(adapter)).eval()
    assert logprobs_of(peft) == pytest.approx(expected, abs=1e-4)
    merged = peft.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    plain: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert logprobs_of(plain) == pytest.approx(expected, abs=1e-4)


def logprobs_of(model: Any) -> list[float]:
    with torch.no_grad():
        logprobs_NV = torch.log_softmax(model(torch.tensor([TEXT])).logits[0], -1)
    return logprobs_NV[:-1].gather(1, torch.tensor(TEXT[1:])[:, None])[:, 0].tolist()


# 35: the names and shapes that vLLM checks when it loads an adapter.
def test_an_adapter_has_the_layout_that_vllm_reads(alice: tinker.ServiceClient, raw: RawApi, tmp_path: Path):
    run = new_run(alice, rank=8)
    train(run, 1)
    adapter = download(raw.http, run.save_weights_for_sampler("x").result().path, tmp_path)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["bias"], config["use_rslora"]) == ("LORA", 8, "none", False)
    with safetensors.safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert {name.rpartition(".lora_")[2] for name in shapes} == {"A.weight", "B.weight"}
    assert all(name.startswith("base_model.model.") for name in shapes)
    modules = {name.rpartition(".lora_")[0].rpartition(".")[2] for name in shapes}
    assert modules == set(config["target_modules"])


# 36
def test_only_safetensors_and_json_are_kept(server: LiveServer, alice: tinker.ServiceClient):
    run = new_run(alice)
    train(run, 1)
    run.save_state("x").result()
    sample(snapshot(run), TEXT)
    files = [path for path in (server.data_dir / "blobs" / "objects").rglob("*") if path.is_file()]
    assert files
    assert {path.suffix for path in files} == {".safetensors", ".json"}


# 36
def test_no_module_reads_pickles():
    sources = (Path(__file__).parents[2] / "src" / "openrl").rglob("*.py")
    for source in sources:
        text = source.read_text()
        found = PICKLES.search(text)
        assert found is None, f"{source} has {found}"


# 34
def test_a_save_in_the_middle_of_a_pipeline_holds_what_came_before_it(server: LiveServer, alice: tinker.ServiceClient):
    run, twin = new_run(alice), new_run(alice)
    run.forward_backward(batch(3), "cross_entropy")
    run.optim_step(STEP)
    saved = run.save_state("middle")
    run.forward_backward(batch(3, 1), "cross_entropy")
    run.optim_step(STEP).result()
    train(twin, 1)
    assert same_state(read_state(saved.result().path, server.data_dir), state_of(twin, server.data_dir))
