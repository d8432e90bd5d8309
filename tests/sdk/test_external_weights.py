"""Contract 37 through the SDK: weights in the files of other tools, behind links that need no key."""

import json
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyrage
import pytest
import tinker
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.contracts.loops import TEXT, new_run, prompt_of, snapshot, train

FILES = {"adapter_config.json", "adapter_model.safetensors"}


def fetch(urls: dict[str, str], directory: Path) -> Path:
    """Download every file by its link, without a key."""
    for name, url in urls.items():
        with urllib.request.urlopen(url, timeout=30) as answer:
            content = answer.read()
            assert int(answer.headers["Content-Length"]) == len(content)
        (directory / name).write_bytes(content)
    return directory


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@pytest.mark.sdk("TrainingClient.save_weights_external", "RestClient.get_external_weights_urls")
def test_external_weights_load_in_peft_and_give_the_samplers_logprobs(
    alice: tinker.ServiceClient, rest: tinker.RestClient, tiny_model_dir: Path, tmp_path: Path
):
    run = new_run(alice, rank=5)
    train(run, 3)
    path = run.save_weights_external("final").result().path
    assert path == f"tinker://{run.model_id}/external_weights/final"
    links = rest.get_external_weights_urls(path).result()
    assert set(links.urls) == FILES
    assert timedelta(minutes=5) < links.expires - datetime.now(UTC) < timedelta(days=1)
    adapter = fetch(links.urls, tmp_path)
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base, str(adapter)).eval()
    with torch.no_grad():
        logprobs_NV = torch.log_softmax(model(torch.tensor([TEXT])).logits[0], -1)
    got = logprobs_NV[:-1].gather(1, torch.tensor(TEXT[1:])[:, None])[:, 0].tolist()
    assert got == pytest.approx(snapshot(run).compute_logprobs(prompt_of(TEXT)).result()[1:], abs=1e-4)


@pytest.mark.sdk("TrainingClient.save_weights_external")
def test_encrypted_files_open_for_each_recipient_and_nobody_else(
    alice: tinker.ServiceClient, rest: tinker.RestClient, tmp_path: Path
):
    run = new_run(alice)
    readers = [pyrage.x25519.Identity.generate() for _ in range(10)]
    recipients = [str(reader.to_public()) for reader in readers]
    plain = rest.get_external_weights_urls(run.save_weights_external("plain").result().path).result()
    hidden_path = run.save_weights_external("hidden", age_encryption_recipients=recipients).result().path
    hidden = rest.get_external_weights_urls(hidden_path).result()
    assert set(hidden.urls) == {f"{name}.age" for name in FILES}
    for directory in ("plain", "hidden"):
        (tmp_path / directory).mkdir()
    expected, got = fetch(plain.urls, tmp_path / "plain"), fetch(hidden.urls, tmp_path / "hidden")
    for name in FILES:
        sealed = (got / f"{name}.age").read_bytes()
        for reader in (readers[0], readers[-1]):
            assert pyrage.decrypt(sealed, [reader]) == (expected / name).read_bytes()
        with pytest.raises(pyrage.DecryptError):
            pyrage.decrypt(sealed, [pyrage.x25519.Identity.generate()])
    assert rest.get_weights_info_by_tinker_path(hidden_path).result().lora_rank == 4


@pytest.mark.sdk("TrainingClient.save_weights_external")
def test_a_save_that_is_refused_names_the_value_and_the_run_goes_on(alice: tinker.ServiceClient):
    run = new_run(alice)
    good = str(pyrage.x25519.Identity.generate().to_public())
    refused: list[tuple[list[str], str]] = [
        ([good, "age1broken"], "'age1broken' is neither"),
        ([], "is empty"),
        ([good] * 11, "at most 10"),
    ]
    for recipients, message in refused:
        with pytest.raises(tinker.BadRequestError, match=message):
            run.save_weights_external("x", age_encryption_recipients=recipients).result()
    with pytest.raises(tinker.BadRequestError, match="checkpoint name"):
        run.save_weights_external("../x").result()
    run.save_weights_external("x", ttl_seconds=3600).result()
    with pytest.raises(tinker.BadRequestError, match="exists already"):
        run.save_weights_external("x").result()
    assert train(run, 1)[0].metrics["num_steps"] == 1.0


@pytest.mark.sdk("RestClient.get_external_weights_urls", "RestClient.delete_checkpoint_from_tinker_path")
def test_links_are_of_their_tenant_and_end_with_the_checkpoint(
    alice: tinker.ServiceClient, rest: tinker.RestClient, bob_rest: tinker.RestClient
):
    run = new_run(alice)
    path, weights = run.save_weights_external("x").result().path, run.save_state("x").result().path
    with pytest.raises(tinker.NotFoundError):
        bob_rest.get_external_weights_urls(path).result()
    with pytest.raises(tinker.NotFoundError):
        rest.get_external_weights_urls(path + "y").result()
    rest.publish_checkpoint_from_tinker_path(path).result()
    theirs = bob_rest.get_external_weights_urls(path).result().urls
    mine = rest.get_external_weights_urls(path).result().urls
    assert [status_of(url) for url in (*theirs.values(), *mine.values())] == [200] * 4
    rest.unpublish_checkpoint_from_tinker_path(path).result()
    assert [status_of(url) for url in (*theirs.values(), *mine.values())] == [404, 404, 200, 200]
    one = mine["adapter_config.json"]
    prefix, _, token = one.rpartition("/")
    for trick in (
        token[:-1],
        token + "0",
        "A" + token,
        token.replace(".", ""),
        "../../etc/passwd",
        "..%2f..%2fkey",
        "%00",
    ):
        assert status_of(f"{prefix}/{trick}") == 404, trick
    assert status_of(one + "/../../../openrl.json") == 404
    rest.delete_checkpoint_from_tinker_path(path).result()
    assert [status_of(url) for url in mine.values()] == [404, 404]
    with pytest.raises((tinker.BadRequestError, ValueError)):
        rest.get_external_weights_urls(weights).result()
