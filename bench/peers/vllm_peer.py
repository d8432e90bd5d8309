"""vLLM on the GPU: our adapters in it, and its speed on the workloads of bench.sample.

    python -m bench.peers.vllm_peer --json --out DIR [--workloads match base adapters] [--model qwen3-4b] [--record]

match     small Qwen3 and Llama models with random weights, adapters in our files: log-probabilities of prompts and of
          greedily chosen tokens beside ours, in bf16 and fp16 (its LoRA kernels take no fp32: they assert it)
base      decode rates at 64 and 256 sequences and the uniform lengths, as bench.sample defines them
adapters  the same over 8 adapters of rank 32
Every part runs in a process of its own and leaves DIR/PART.json and DIR/PART.log.
"""

import importlib
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.limits import Limits
from bench.models import RANK, config_of, create_model, random_adapter
from bench.peers.adapter_match import FAMILIES, SPECS, compare, load, write_adapter, write_model
from bench.peers.processes import Parts, keep, split_options
from bench.records import Part, finish, options_of, rate_part
from bench.sample import make_work, prompts_of
from openrl.model.peft_files import adapter_files

WORKLOADS = ("match", "base", "adapters")
MODULE = "bench.peers.vllm_peer"
DTYPES = ("bfloat16", "float16")
KINDS = ("base", *SPECS)
NUM_ADAPTERS = 8


class Vllm:
    """vLLM in this process. It is imported here: where the benchmark is not run it is not installed."""

    def __init__(self, model: Path, **options: Any) -> None:
        os.environ |= {"VLLM_USE_FLASHINFER_SAMPLER": "0", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        vllm: Any = importlib.import_module("vllm")
        self._lora: Any = importlib.import_module("vllm.lora.request").LoRARequest
        self._params: Any = vllm.SamplingParams
        self._numbers: dict[Path, int] = {}
        self._llm: Any = vllm.LLM(
            model=str(model),
            attention_backend="FLASH_ATTN",
            skip_tokenizer_init=True,
            max_model_len=4096,
            enable_prefix_caching=False,
            **options,
        )

    def generate(
        self, prompts: Sequence[Any], new: Sequence[int], adapters: Sequence[Path | None], **chosen: Any
    ) -> list[Any]:
        """Outputs of one round; prompt i goes to adapter i modulo their number."""
        params = [self._params(max_tokens=n, ignore_eos=True, detokenize=False, **chosen) for n in new]
        asked: list[Any] = []
        for index in range(len(prompts)):
            path = adapters[index % len(adapters)] if adapters else None
            if path is not None:
                self._numbers.setdefault(path, len(self._numbers) + 1)
            asked.append(None if path is None else self._lora(path.name, self._numbers[path], str(path)))
        inputs = [{"prompt_token_ids": [int(t) for t in prompt]} for prompt in prompts]
        outputs = self._llm.generate(inputs, params, use_tqdm=False, lora_request=asked if adapters else None)
        assert [len(o.outputs[0].token_ids) for o in outputs] == list(new)
        return outputs

    def seconds(self, prompts: Sequence[Any], new: Sequence[int], adapters: Sequence[Path]) -> float:
        """Time of one round at temperature 1."""
        started = time.perf_counter()
        self.generate(prompts, new, adapters, temperature=1.0)
        return time.perf_counter() - started


def match(out: Path, family: str, dtype: str) -> dict[str, Any]:
    """vLLM's sequences and log-probabilities for every adapter of a family."""
    directory = out / family
    peer = Vllm(
        directory / "model",
        dtype=dtype,
        enforce_eager=True,
        enable_lora=True,
        max_loras=4,
        max_lora_rank=32,
        gpu_memory_utilization=0.15,
        kv_cache_memory_bytes=2**30,
    )
    found: dict[str, Any] = {}
    for number, kind in enumerate(KINDS):
        prompts = prompts_of(32000, [64] * 16, number)
        adapters = [None if kind == "base" else directory / kind]
        chosen: dict[str, Any] = {"temperature": 0.0, "logprobs": 0, "prompt_logprobs": 0}
        outputs = peer.generate(prompts, [64] * 16, adapters, **chosen)
        sequences = [[*o.prompt_token_ids, *o.outputs[0].token_ids] for o in outputs]
        logprobs: list[Any] = []
        for output, sequence in zip(outputs, sequences, strict=True):
            places = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
            logprobs.append([place[t].logprob for place, t in zip(places, sequence[1:], strict=True)])
        found[kind] = {"sequences": sequences, "logprobs": logprobs, "prompt_tokens": 64}
        keep(out, f"found-{family}-{dtype}", found)
    return found


def prepare(out: Path, tiny: bool = False) -> None:
    """Models and adapters of `match`."""
    for family in FAMILIES:
        write_model(family, out / family / "model", tiny)
        model = load(out / family / "model", torch.float32)
        for kind, spec in SPECS.items():
            write_adapter(model, spec, out / family / kind)


def rates(out: Path, name: str, adapted: bool) -> dict[str, Any]:
    """Decode rates of one engine; each is kept as soon as it is there."""
    directory = Path("/dev/shm/openrl-peers")
    adapters = [directory / str(number) for number in range(NUM_ADAPTERS)] if adapted else []
    started = time.perf_counter()
    options: dict[str, Any] = {"enable_lora": True, "max_loras": NUM_ADAPTERS, "max_lora_rank": RANK} if adapted else {}
    peer = Vllm(directory, load_format="dummy", dtype="bfloat16", gpu_memory_utilization=0.85, **options)
    found: dict[str, Any] = {"start_s": time.perf_counter() - started}
    vocab, work = config_of(name, tiny=False).vocab_size, make_work(tiny=False)
    part = "adapters" if adapted else "base"
    for turn, batch in enumerate(work.batches):
        lengths = [work.prompt] * batch
        taken = [
            peer.seconds(prompts_of(vocab, lengths, 3 * turn + i), [new] * batch, adapters)
            for i, new in enumerate((2, 1, work.new))
        ]
        decode_s = taken[2] - taken[1]
        found[f"{part}{batch}"] = {
            "rate": batch * (work.new - 1) / decode_s,
            "step_ms": 1e3 * decode_s / (work.new - 1),
            "end_to_end": batch * work.new / taken[2],
            "first_token_s": taken[1],
        }
        keep(out, f"so-far-{part}", found)
    draw, (num, low, high) = random.Random(0), work.uniform
    lengths = [len([draw.randint(0, 10000) for _ in range(draw.randint(low, high))]) for _ in range(num)]
    new = [draw.randint(low, high) for _ in range(num)]
    peer.seconds(prompts_of(vocab, lengths, 8), [2] * num, adapters)
    found[f"{part} uniform"] = {"rate": sum(new) / peer.seconds(prompts_of(vocab, lengths, 9), new, adapters)}
    return found


def write_shape(name: str) -> None:
    """The configuration of a shape and adapters for it, in memory."""
    directory = Path("/dev/shm/openrl-peers")
    config = config_of(name, tiny=False)
    config.architectures = ["Gemma3ForCausalLM" if name.startswith("gemma") else "Qwen3ForCausalLM"]
    config.dtype = "bfloat16"
    config.save_pretrained(directory)
    model = create_model(name, tiny=False)
    for number in range(NUM_ADAPTERS):
        (directory / str(number)).mkdir(parents=True, exist_ok=True)
        for file, content in adapter_files(random_adapter(model, number), name).items():
            (directory / str(number) / file).write_bytes(content)


def limits_of_shape(name: str) -> Limits:
    """As bench.limits.limits_of, without a model."""
    c = config_of(name, tiny=False)
    q, kv, d, f = (
        c.num_attention_heads * c.head_dim,
        c.num_key_value_heads * c.head_dim,
        c.hidden_size,
        c.intermediate_size,
    )
    linears = [(d, q), (d, kv), (d, kv), (q, d), (d, f), (d, f), (f, d)]
    layers = c.num_hidden_layers
    return Limits(
        body=layers * sum(i * o for i, o in linears),
        head=c.vocab_size * d,
        lora=layers * RANK * sum(i + o for i, o in linears),
        kv_bytes=4 * layers * kv,
        attention_flops=4 * layers * q,
        windows=(None,),
    )


def run_part(part: str, out: Path, name: str) -> None:
    """One part, in this process."""
    words = part.split("-")
    if part == "prepare":
        prepare(out)
        keep(out, part, {})
    elif part == "shape":
        write_shape(name)
        keep(out, part, {})
    elif words[0] == "match":
        found = match(out, words[1], words[2])
        keep(out, part, {kind: compare(out / words[1], kind, each) for kind, each in found.items()})
    else:
        keep(out, part, rates(out, name, part == "adapters"))


def match_parts(parts: Parts) -> list[Part]:
    """Mean distance for each family, type and adapter, of the peer from ours in fp32."""
    parts.run(["prepare"])
    found = parts.run([f"match-{family}-{dtype}" for family in FAMILIES for dtype in DTYPES])
    result: list[Part] = []
    for name, kinds in found.items():
        for kind, details in kinds.items():
            value = details["peer - ours float32"]["mean_abs"]
            result.append(Part(f"{name} {kind}", value, "nats", details=details))
    return result


def rate_parts(parts: Parts, workload: str, name: str) -> list[Part]:
    """Rates beside the limits of the H100."""
    limits, work = limits_of_shape(name), make_work(tiny=False)
    result: list[Part] = []
    for found in parts.run([workload]).values():
        for part, details in found.items():
            if part == "start_s":
                continue
            if part.endswith("uniform"):
                batch, low, high = work.uniform
                context = (low + high) * 0.75
            else:
                batch, context = int(part.removeprefix(workload)), work.prompt + work.new / 2
            limit = limits.decode_rate(batch, context, NUM_ADAPTERS if workload == "adapters" else 0)
            rate = details.pop("rate")
            result.append(rate_part(part, rate, limit, start_s=found["start_s"], **details))
    return result


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    own, rest = split_options(argv)
    options = options_of(__doc__, WORKLOADS, rest)
    if own.part is not None:
        run_part(own.part, own.out, options.model)
        return {}
    parts = Parts(MODULE, own.out, ["--model", options.model], own.limit_s)
    results: list[Part] = []
    if "match" in options.workloads:
        results += match_parts(parts)
    rated = [workload for workload in ("base", "adapters") if workload in options.workloads]
    if rated:
        parts.run(["shape"])
    for workload in rated:
        results += rate_parts(parts, workload, options.model)
    results = results or [Part("nothing succeeded", 0.0, "parts")]
    result = finish("vllm", results, {"failed": parts.failed}, options, ("torch", "transformers", "vllm", "peft"))
    keep(own.out, "vllm-" + "-".join(options.workloads), result)
    return result


if __name__ == "__main__":
    main()
