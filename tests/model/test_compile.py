import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import AutoConfig

from openrl.model.adapter import AdapterWeights, LoraPair
from openrl.model.base_model import ATTENTION_NAME, BaseModel, ModelSource, create_base_model, load_base_model
from openrl.model.grouped_lora import GroupedTrainingAdapters
from openrl.model.lora import AdapterBank, TrainingAdapters
from openrl.model.weight_files import load_causal_lm
from tests.model.test_grouped_lora import StagedSums, grouped_bank
from tests.model.test_lora import Sums
from tests.model.tiny_models import FAMILIES, load_tiny, packed

pytestmark = [  # torch's own, while it traces
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]
CPU = torch.device("cpu")
KINDS = {"llama": 1, "qwen2": 1, "qwen3": 1, "gemma3": 2}


def compiled(directory: Path, backend: str) -> BaseModel:
    torch._dynamo.reset()
    counters.clear()
    return load_base_model(ModelSource("tiny", directory, CPU, torch.float32, backend))


def fused_and_compiled(directory: Path, backend: str) -> BaseModel:
    """As on a GPU: linears that share their input are one product, whose parts lie side by side."""
    plain = compiled(directory, backend)  # also makes our attention known
    source = ModelSource("tiny", directory, CPU, torch.float32, backend)
    causal_lm = load_causal_lm(directory, AutoConfig.from_pretrained(directory), torch.float32, ATTENTION_NAME, CPU)
    return create_base_model(source, causal_lm, plain.tokenizer, fuses_linears=True)


def random_adapters(model: BaseModel) -> list[AdapterWeights]:
    torch.manual_seed(3)
    return [
        AdapterWeights(
            4,
            {
                name: LoraPair(torch.randn(4, inputs) * 0.1, torch.randn(outputs, 4) * 0.1)
                for name, (inputs, outputs) in model.linear_shapes.items()
            },
        )
        for _ in range(2)
    ]


def bank_of(model: BaseModel) -> AdapterBank:
    bank = AdapterBank(model.linear_shapes, 2, torch.float32, CPU)
    for slot, adapter in enumerate(random_adapters(model)):
        bank.write(slot, adapter)
    return bank


def sequences(lengths: Sequence[int]) -> list[list[int]]:
    rng = random.Random(sum(lengths))
    return [[rng.randrange(5, 500) for _ in range(length)] for length in lengths]


def adapters_of(model: BaseModel, num_jobs: int) -> tuple[Sums, TrainingAdapters]:
    """Two slots' adapters, and where the gradients of each job go."""
    if not model.linear_groups:
        sums = Sums()
        return sums, TrainingAdapters(bank_of(model), sums, CPU)
    grouped = grouped_bank(model, 2)
    adapters = random_adapters(model)
    for slot, adapter in enumerate(adapters):
        grouped.write(slot, adapter)
    staged = StagedSums([adapters[job % 2] for job in range(num_jobs)])
    return staged, GroupedTrainingAdapters(grouped, staged, CPU)


def staged_sums(sink: Sums) -> dict[tuple[int, str], tuple[Tensor, Tensor]]:
    if not isinstance(sink, StagedSums):
        return {}
    found = {(j, name): (p.a_RD, p.b_OR) for j, pairs in enumerate(sink.pairs) for name, p in pairs.items()}
    return {key: pair for key, pair in found.items() if key[1] != "lm_head"}


def gradients(model: BaseModel, lengths: Sequence[int], recomputed: int) -> tuple[Tensor, Any]:
    """Hidden states, and the factors' gradients of a function of them."""
    sink, adapters = adapters_of(model, len(lengths))
    batch = packed(model, sequences(lengths), adapters, [index % 2 for index in range(len(lengths))])
    hidden_TD = model.hidden(replace(batch, recomputed_layers=recomputed))
    (hidden_TD * torch.linspace(-1, 1, hidden_TD.shape[-1])).sum().backward()
    return hidden_TD.detach(), sink.sums | staged_sums(sink)


def forward(model: BaseModel, length: int) -> Tensor:
    return model.hidden(packed(model, sequences([length])))


def check_gradients(compiled_model: BaseModel, eager: BaseModel, lengths: Sequence[int], recomputed: int) -> None:
    hidden_TD, sums = gradients(compiled_model, lengths, recomputed)
    expected_TD, expected = gradients(eager, lengths, recomputed)
    torch.testing.assert_close(hidden_TD, expected_TD, rtol=1e-4, atol=1e-4)
    assert sums.keys() == expected.keys()
    # Gradients that should be zero (queries and keys of one token) are rounding errors of larger ones.
    largest = max(float(each.abs().max()) for pair in expected.values() for each in pair)
    for key, pair in expected.items():
        for found, wanted in zip(sums[key], pair, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=2e-5 * largest)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_trace_serves_all_layers_of_a_kind_and_any_number_of_rows(tiny_dirs: dict[str, Path], family: str):
    model, eager = compiled(tiny_dirs[family], "aot_eager"), load_tiny(tiny_dirs[family])
    rng = random.Random(5)
    for turn in range(20):
        check_gradients(model, eager, [rng.randrange(1, 60) for _ in range(rng.randrange(1, 5))], turn % 4)
    assert counters["stats"]["unique_graphs"] == KINDS[family]
    with torch.no_grad():
        for length in (3, 17, 40):
            torch.testing.assert_close(forward(model, length), forward(eager, length), rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        for length in (3, 17, 40):
            torch.testing.assert_close(forward(model, length), forward(eager, length), rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 3 * KINDS[family]
    assert not counters["graph_break"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="kernels for the CPU are compiled with it")
@pytest.mark.parametrize("fuses", [False, True])
def test_compiled_kernels_give_the_same_gradients(tiny_dirs: dict[str, Path], fuses: bool):
    load = fused_and_compiled if fuses else compiled
    model, eager = load(tiny_dirs["qwen3"], "inductor"), load_tiny(tiny_dirs["qwen3"])
    for lengths, recomputed in (([13, 40], 0), ([5], 0), ([60, 7], 2)):
        check_gradients(model, eager, lengths, recomputed)
    assert counters["stats"]["unique_graphs"] == 1


def test_layers_that_cannot_be_compiled_run_as_they_are_with_one_warning(
    tiny_dirs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    def broken(*args: object) -> None:
        raise ValueError("no such kernel")

    monkeypatch.setattr("openrl.model.compile.compile_stages", broken)
    model, eager = compiled(tiny_dirs["llama"], "aot_eager"), load_tiny(tiny_dirs["llama"])
    for _ in range(2):
        torch.testing.assert_close(forward(model, 20), forward(eager, 20), rtol=0.0, atol=0.0)
    assert "".join(capfd.readouterr()).count("layers are not compiled") == 1
