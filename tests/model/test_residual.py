"""With an fp32 stream a bf16 model is nearer to the exact one, and nothing else sees fp32."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from openrl.model.base_model import ATTENTION_NAME, BaseModel, ModelSource, create_base_model, load_base_model
from openrl.model.lora import LoraLinear
from openrl.model.residual import widen_residual
from openrl.model.weight_files import load_causal_lm
from tests.model.test_compile import sequences
from tests.model.tiny_models import FAMILIES, packed

pytestmark = [  # torch's own, while it traces
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]
CPU = torch.device("cpu")


def load(directory: Path, dtype: torch.dtype, compiler: str | None = None, *, is_wide: bool = False) -> BaseModel:
    """As on a GPU: linears that share their input are one product."""
    source = ModelSource("tiny", directory, CPU, dtype, compiler, is_wide)
    plain = load_base_model(replace(source, compiler=None, has_fp32_residual=False))
    causal_lm = load_causal_lm(directory, AutoConfig.from_pretrained(directory), dtype, ATTENTION_NAME, CPU)
    return create_base_model(source, causal_lm, plain.tokenizer, fuses_linears=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_nearer_to_exact_ones_and_stay_narrow(tiny_dirs: dict[str, Path], family: str):
    tokens = sequences([70, 33, 120])
    exact = load(tiny_dirs[family], torch.float32)
    hidden: dict[bool, torch.Tensor] = {}
    with torch.no_grad():
        expected = exact.hidden(packed(exact, tokens, None, [-1] * 3))
        for is_wide in (False, True):
            model = load(tiny_dirs[family], torch.bfloat16, is_wide=is_wide)
            # The same weights: what differs is what is rounded on the way.
            for parameter, other in zip(exact._body.parameters(), model._body.parameters(), strict=True):
                parameter.copy_(other)
            expected = exact.hidden(packed(exact, tokens, None, [-1] * 3))
            hidden[is_wide] = model.hidden(packed(model, tokens, None, [-1] * 3))
    assert hidden[True].dtype == torch.bfloat16
    errors = {is_wide: float((found.float() - expected).pow(2).mean()) for is_wide, found in hidden.items()}
    assert errors[True] < 0.9 * errors[False]


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_compiled_layers_add_in_fp32_too(tiny_dirs: dict[str, Path], family: str, capfd: pytest.CaptureFixture[str]):
    torch._dynamo.reset()
    model, traced = (load(tiny_dirs[family], torch.bfloat16, c, is_wide=True) for c in (None, "aot_eager"))
    tokens = sequences([40, 21])
    kinds: list[torch.dtype] = []

    def note(_: nn.Module, inputs: tuple[torch.Tensor, ...], __: object) -> None:
        kinds.append(inputs[0].dtype)

    traced._body.norm.register_forward_hook(note)
    found, expected = (m.hidden(packed(m, tokens, None, [-1] * 2)) for m in (traced, model))
    assert kinds == [torch.float32]
    assert "layers are not compiled" not in "".join(capfd.readouterr())
    assert (found.float() - expected.float()).abs().max() < 0.05 * float(expected.float().abs().max())


def test_layers_with_weights_of_another_kind_stay_as_they_are(capfd: pytest.CaptureFixture[str]):
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed_tokens = nn.Embedding(4, 8, dtype=torch.bfloat16)
            self.layers = nn.ModuleList([nn.LayerNorm(8, dtype=torch.bfloat16)])

    body = Body()
    widen_residual(body, torch.bfloat16, (LoraLinear,))
    assert body.embed_tokens(torch.tensor([1])).dtype == torch.bfloat16
    assert "LayerNorm" in "".join(capfd.readouterr())
