"""Weights that leave the server as the library takes them: downloaded, made into a model and an adapter, published."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tinker
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.contracts.loops import connect, prompt_of
from tests.contracts.saved_state import read_state, same_state, same_tensors
from tests.cookbook.chat_model import byte_tokenizer
from tests.cookbook.recipes import FRESH, MODEL, OLD_WITH_ITS_SDK, Recipes, Run
from tests.sdk.fake_hub import fake_hub

ADAPTER = "adapter_model.safetensors"
TOKENS = byte_tokenizer().encode(
    "<|im_start|>user\nWhat is 17+1?<|im_end|>\n<|im_start|>assistant\nIt is 18.<|im_end|>"
)
LIBRARY = "tinker_cookbook"
LOGPROB_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def trained(recipes: Recipes) -> Run:
    """Far enough from the base model that a lost adapter would show."""
    data = f"dataset={recipes.workspace / 'conversations.jsonl'}"
    return recipes.run("chat_sl.train", MODEL, FRESH, data, "batch_size=8", "max_steps=4", "learning_rate=0.01")


@pytest.fixture(scope="module")
def downloaded(recipes: Recipes, trained: Run) -> Run:
    into = f"output_dir={recipes.workspace / 'adapter'}"
    return recipes.call("weights.download", f"tinker_path={trained.checkpoints[-1]['state_path']}", into)


def adapter_of(recipes: Recipes) -> Path:
    return recipes.workspace / "adapter"


def rest_client(recipes: Recipes) -> tinker.RestClient:
    return tinker.RestClient(base_url=recipes.server.url, api_key=recipes.server.key)


def logprobs_under(model: Any) -> list[float]:
    with torch.no_grad():
        logprobs_NV = torch.log_softmax(model(torch.tensor([TOKENS])).logits[0].float(), -1)
    return logprobs_NV[:-1].gather(1, torch.tensor(TOKENS[1:])[:, None])[:, 0].tolist()


def sampler_logprobs(recipes: Recipes, path: str) -> list[float]:
    with connect(recipes.server.url, recipes.server.key) as service:
        sampler = service.create_sampling_client(model_path=path).result()
        return [value or 0.0 for value in sampler.compute_logprobs(prompt_of(TOKENS)).result()[1:]]


def largest_difference(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def test_a_training_checkpoint_is_downloaded_by_an_encrypted_export(recipes: Recipes, trained: Run, downloaded: Run):
    """The library refuses a file that is not encrypted, so that it came means that all were."""
    got = safetensors.torch.load_file(adapter_of(recipes) / ADAPTER)
    path = trained.checkpoints[-1]["state_path"]
    assert same_tensors(got, read_state(path, recipes.server.data_dir).adapter)
    kinds = {row.checkpoint_type for row in rest_client(recipes).list_user_checkpoints(limit=1000).result().checkpoints}
    assert "external" not in kinds
    recipes.note(
        downloaded, "encrypted export, gone afterwards; tensors bit-equal to the checkpoint's", f"{len(got)} tensors"
    )


def test_the_audit_log_shows_the_export_come_and_go(recipes: Recipes, downloaded: Run):
    logs = recipes.workspace / "audit"
    options = ("--once", "--output-dir", str(logs), "--backfill-days", "1")
    run = recipes.run("scripts.save_audit_log", *options, own_log=True, package=LIBRARY)
    entries = [json.loads(line) for file in logs.iterdir() for line in file.read_text().splitlines()]
    of_export = [each["event"] for each in entries if (each["tinker_path"] or "").endswith("external_weights/download")]
    assert of_export == ["checkpoint_save", "checkpoint_ttl_set", "checkpoint_delete"]
    recipes.note(run, "the export of `weights.download`: saved, its expiry set, deleted", f"{len(entries)} entries")


def test_a_merged_model_and_an_adapter_give_the_samplers_logprobs(recipes: Recipes, trained: Run, downloaded: Run):
    expected = sampler_logprobs(recipes, trained.checkpoints[-1]["sampler_path"])
    base: Any = AutoModelForCausalLM.from_pretrained(recipes.model, dtype=torch.float32)
    assert largest_difference(logprobs_under(base), expected) > 0.1
    sources = (f"base_model={recipes.model}", f"adapter_path={adapter_of(recipes)}")
    for function in ("build_hf_model", "build_lora_adapter"):
        target = recipes.workspace / function
        run = recipes.call(f"weights.{function}", *sources, f"output_path={target}")
        if function == "build_hf_model":
            model: Any = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
        else:
            model = PeftModel.from_pretrained(base, str(target)).eval()
        difference = largest_difference(logprobs_under(model), expected)
        assert difference <= LOGPROB_TOLERANCE
        recipes.note(
            run,
            f"log-probabilities in transformers within {LOGPROB_TOLERANCE:.0e} of the sampler's",
            f"{difference:.0e}",
        )


def test_an_adapter_is_published(recipes: Recipes, downloaded: Run):
    with fake_hub() as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "0"}
        folder = f"model_path={adapter_of(recipes)}"
        run = recipes.call("weights.publish_to_hf_hub", folder, "repo_id=alice/x", environment=environment)
        assert hub.files[ADAPTER] == (adapter_of(recipes) / ADAPTER).read_bytes()
    recipes.note(run, "the adapter arrives at a stand-in for the hub", f"{len(hub.files)} files")


def test_the_merging_script_makes_the_same_model(recipes: Recipes, downloaded: Run):
    made = recipes.workspace / "merged-by-script"
    options = ("--tinker-adapter-path", str(adapter_of(recipes)), "--hf-model", str(recipes.model))
    run = recipes.run(
        "scripts.merge_tinker_adapter_to_hf_model", *options, "--output-path", str(made), own_log=True, package=LIBRARY
    )
    tensors = safetensors.torch.load_file(made / "model.safetensors")
    base = safetensors.torch.load_file(recipes.model / "model.safetensors")
    moved = [name for name in base if not torch.equal(base[name], tensors[name])]
    assert tensors.keys() == base.keys()
    assert len(moved) == len(safetensors.torch.load_file(adapter_of(recipes) / ADAPTER)) // 2
    recipes.note(run, "weights that the adapter moved, of all", f"{len(moved)} of {len(base)}")


def test_a_checkpoint_is_copied_to_another_tenant_with_a_token(recipes: Recipes, trained: Run):
    source = trained.checkpoints[-1]["state_path"]
    options = ("--source-path", source, "--output-kind", "training", "--output-name", "lent")
    token = ("--source-access-token", recipes.server.key)
    other = {"TINKER_API_KEY": recipes.server.other_key}
    run = recipes.run("scripts.copy_checkpoint", *options, *token, own_log=True, package=LIBRARY, environment=other)
    copy = run.output.split("training_path: ")[1].split()[0]
    one, two = (read_state(path, recipes.server.data_dir) for path in (source, copy))
    assert same_tensors(one.adapter, two.adapter)
    assert not same_state(one, two)  # the script leaves the optimizer behind
    shown = Run(run.recipe, (*options[2:], "--source-access-token", "…"), run.log, run.output, run.seconds)
    recipes.note(shown, "another tenant's copy, adapter bit-equal", f"{len(one.adapter)} tensors")


def test_0_5_5_downloads_an_archive_with_the_sdk_of_its_days(recipes: Recipes, trained: Run):
    path, target = trained.checkpoints[-1]["sampler_path"], recipes.workspace / "adapter-0.5.5"
    run = recipes.call("weights.download", f"tinker_path={path}", f"output_dir={target}", source=OLD_WITH_ITS_SDK)
    got, config = (
        safetensors.torch.load_file(target / ADAPTER),
        json.loads((target / "adapter_config.json").read_text()),
    )
    assert same_tensors(got, read_state(trained.checkpoints[-1]["state_path"], recipes.server.data_dir).adapter)
    assert {"r", "lora_alpha"} <= config.keys()
    recipes.note(run, "0.5.5 with SDK 0.25: the archive's tensors bit-equal to the checkpoint's", f"{len(got)} tensors")
