"""The engine on a GPU against plain transformers there."""

from pathlib import Path

import numpy as np
import pytest
import torch

from openrl.model.base_model import ModelSource, load_base_model
from openrl.protocol.results import SampleResult
from tests.model.tiny_models import FAMILIES, load_plain
from tests.sampling.jobs import engine, job, outcomes

pytestmark = pytest.mark.gpu

PROMPT = list(range(20, 90))


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_of_a_mixed_batch_equal_plain_transformers(tiny_dirs: dict[str, Path], family: str):
    device = torch.device("cuda")
    model = load_base_model(ModelSource("tiny", tiny_dirs[family], device, torch.float32))
    plain = load_plain(tiny_dirs[family]).to(device)
    sampling = engine(model, prefill_tokens=48)
    scored = {"wants_prompt_logprobs": True}
    jobs = [job(f"r{i}", PROMPT[i:], num_samples=2, max_tokens=40, temperature=0.8, extra=scored) for i in range(4)]
    others = [job(f"o{i}", PROMPT[: i + 9], adapter=str(i), max_tokens=30) for i in range(4)]
    results = outcomes(sampling, [*jobs, *others])
    assert sampling.stats().kv_blocks_used == 0
    for index, each in enumerate(jobs):
        result = results[each.request_id]
        assert isinstance(result, SampleResult)
        assert result.prompt_logprobs is not None
        num_prompt = len(PROMPT) - index
        for sequence in result.sequences:
            tokens = torch.tensor([*PROMPT[index:], *sequence.tokens.tolist()], device=device)
            with torch.no_grad():
                logits = plain(tokens[None]).logits[0, :-1].float()
            tempered = torch.log_softmax(logits / 0.8, -1).gather(1, tokens[1:, None])[num_prompt - 1 :, 0]
            scores = torch.log_softmax(logits, -1).gather(1, tokens[1:, None])[: num_prompt - 1, 0]
            assert np.abs(sequence.logprobs - tempered.cpu().numpy()).max() < 1e-3
            assert np.abs(result.prompt_logprobs[1:] - scores.cpu().numpy()).max() < 1e-3
