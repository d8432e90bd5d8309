"""PEFT, with and without Liger's kernels, on training steps of one adapter.

    python -m bench.peers.train_peers --json --out DIR [--workloads plain liger loop] [--model qwen3-4b] [--record]

plain  transformers and PEFT in bf16, 64 sequences of 384 tokens, the largest micro-batch that fits, no recompute
liger  the same with Liger's fused head, norms, SwiGLU and rotary embedding
loop   one sequence a pass, 8 of them
Every part runs in a process of its own and leaves DIR/PART.json and DIR/PART.log.
"""

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from bench.models import RANK, config_of
from bench.peers.processes import Parts, keep, split_options
from bench.peers.vllm_peer import limits_of_shape
from bench.peft_loop import TARGETS
from bench.records import Part, finish, options_of, peak_gib, rate_part, timed

WORKLOADS = ("plain", "liger", "loop")
LENGTH = 384
MICRO_BATCHES = (64, 32, 16, 8)


def create_peft_model(name: str, liger: bool, tiny: bool) -> Any:
    """The model with one adapter, on the device."""
    if liger:
        family = "gemma3_text" if name.startswith("gemma") else "qwen3"
        getattr(importlib.import_module("liger_kernel.transformers"), f"apply_liger_kernel_to_{family}")()
    cuda = torch.cuda.is_available()
    torch.manual_seed(0)
    with torch.device("cuda" if cuda else "cpu"):
        dtype = torch.bfloat16 if cuda else torch.float32
        base: Any = AutoModelForCausalLM.from_config(config_of(name, tiny), dtype=dtype)
        config = LoraConfig(r=RANK, lora_alpha=32, target_modules=TARGETS, lora_dropout=0.0, task_type="CAUSAL_LM")
        return get_peft_model(base, config, autocast_adapter_dtype=False).train()


def one_pass(model: Any, tokens_BT: Tensor, micro_batch: int) -> None:
    """Forward and backward of all sequences."""
    for chosen in tokens_BT.split(micro_batch):
        loss = model(input_ids=chosen, labels=chosen, use_cache=False).loss
        loss.backward()
        assert math.isfinite(loss.item())


def measure(name: str, part: str, tiny: bool, repeats: int) -> dict[str, Any]:
    """Tokens/s and memory of one part, at the largest micro-batch that fits."""
    model = create_peft_model(name, part == "liger", tiny)
    num, length = (4, 12) if tiny else (8 if part == "loop" else 64, LENGTH)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vocab = int(config_of(name, tiny).vocab_size)
    tokens_BT = torch.randint(10, vocab, (num, length), generator=torch.Generator().manual_seed(0)).to(device)
    for micro_batch in (1,) if part == "loop" else MICRO_BATCHES:
        try:
            one_pass(model, tokens_BT, micro_batch)  # warms up
            peak_gib()
            seconds = sorted(timed(lambda size=micro_batch: one_pass(model, tokens_BT, size)) for _ in range(repeats))
        except torch.OutOfMemoryError:
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            continue
        rate = num * length / seconds[len(seconds) // 2]
        return {"rate": rate, "micro_batch": micro_batch, "peak_gib": peak_gib(), "tokens": num * length}
    raise torch.OutOfMemoryError(f"{name} {part}: not even {MICRO_BATCHES[-1]} sequences fit")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    own, rest = split_options(argv)
    options = options_of(__doc__, WORKLOADS, rest)
    if own.part is not None:
        name, _, part = own.part.rpartition("-")
        keep(own.out, own.part, measure(name, part, options.tiny, options.repeats))
        return {}
    arguments = ["--model", options.model, "--repeats", str(options.repeats), *(["--tiny"] if options.tiny else [])]
    parts = Parts("bench.peers.train_peers", own.out, arguments, own.limit_s)
    limit = limits_of_shape(options.model).training_rate(LENGTH)
    results: list[Part] = []
    for workload in options.workloads:
        found = parts.run([f"{options.model}-{workload}"])
        results += [rate_part(workload, each.pop("rate"), limit, **each) for each in found.values()]
    results = results or [Part("nothing succeeded", 0.0, "parts")]
    versions = ("torch", "transformers", "peft", "liger_kernel")
    result = finish("train_peers", results, {"failed": parts.failed}, options, versions)
    keep(own.out, f"train_peers-{options.model}", result)
    return result


if __name__ == "__main__":
    main()
