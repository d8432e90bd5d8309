"""Runs benchmarks of the library of the library; prints examples and errors: `benchmarks_call.py MODEL NAME…`."""

import asyncio
import sys

import tinker
from tinker_cookbook.eval.benchmarks import BenchmarkConfig, run_benchmarks  # pyright: ignore[reportMissingImports]
from tinker_cookbook.renderers import get_renderer  # pyright: ignore[reportMissingImports]
from tinker_cookbook.tokenizer_utils import get_tokenizer  # pyright: ignore[reportMissingImports]


async def main(model: str, names: list[str]) -> None:
    renderer = get_renderer("qwen3_disable_thinking", get_tokenizer(model))
    sampler = tinker.ServiceClient().create_sampling_client(base_model=model).result()
    config = BenchmarkConfig(max_examples=8, max_tokens=16, save_dir="runs/benchmarks")
    results = await run_benchmarks(names, sampler, renderer, config)
    for name, result in results.items():
        print("measured", name, result.num_examples, result.num_errors)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
