"""What of the peer benchmarks runs without a GPU: our adapters in PEFT, the comparison, the training loops."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.limits import limits_of
from bench.models import RANK, config_of, create_model
from bench.peers import train_peers, vllm_peer
from bench.peers.adapter_match import FAMILIES, compare, peft_logprobs
from bench.peers.vllm_peer import KINDS, prepare


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_a_peer_that_is_peft_is_no_further_than_rounding(tmp_path: Path):
    prepare(tmp_path, tiny=True)
    sequences = [list(range(20, 60)), list(range(100, 131))]
    for family in FAMILIES:
        for kind in KINDS:
            adapter = None if kind == "base" else tmp_path / family / kind
            logprobs, _ = peft_logprobs(tmp_path / family / "model", adapter, torch.float32, sequences)
            found = {"sequences": sequences, "logprobs": logprobs, "prompt_tokens": 16}
            result = compare(tmp_path / family, kind, found)
            assert result["peer - ours float32"]["max_abs"] < 1e-4, (family, kind)
            assert result["peer - ours float32"]["tokens"] == 69
            assert 0 <= result["greedy_agreement"] <= 1
            if kind == "unembed":
                assert result["unembed_ignored"]["max_abs"] > 1e-2


def test_the_training_peers_run_and_a_failed_part_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    name = "qwen3-0.6b"
    argv = ["--tiny", "--json", "--repeats", "1", "--model", name, "--out", str(tmp_path), "--workloads"]
    result = train_peers.main([*argv, "plain", "loop"])
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(result))
    assert [part["workload"] for part in result["parts"]] == ["plain", "loop"]
    assert result["parts"][0]["value"] > 0
    result = train_peers.main([*argv, "liger"])  # needs a GPU
    assert list(result["twin"]["failed"]) == [f"{name}-liger"]


def test_limits_of_a_shape_are_those_of_the_model(monkeypatch: pytest.MonkeyPatch):
    def tiny_config(name: str, tiny: bool) -> Any:
        return config_of(name, tiny=True)

    monkeypatch.setattr(vllm_peer, "config_of", tiny_config)
    expected = limits_of(create_model("qwen3-0.6b", tiny=True), RANK)
    assert replace(vllm_peer.limits_of_shape("qwen3-0.6b"), windows=expected.windows) == expected
