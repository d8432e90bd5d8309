"""Reinforcement learning with a verifiable reward in its shortest form: one-digit sums.

openrl serve --model smollm2-135m-instruct
python examples/arithmetic_rlvr.py --api-key tml-...
"""

import argparse
import os
import random
import statistics
from pathlib import Path

import tinker
from tokenizers import Tokenizer

SHOTS = "2 + 3 = 5\n7 + 1 = 8\n4 + 9 = 13\n"
PROBLEMS = [(a, b) for a in range(1, 10) for b in range(1, 10)]
STEPS, PROMPTS, SAMPLES, RATE = 15, 8, 8, 1e-3


def reward(text: str, problem: tuple[int, int]) -> float:
    """1 for the right number, else 0."""
    return float(text.strip() == str(sum(problem)))


def tensor(values: list[float]) -> tinker.TensorData:
    """A list of numbers as the SDK sends it."""
    return tinker.TensorData(data=values, dtype="float32", shape=[len(values)])


def datum(prompt: list[int], sample: tinker.SampledSequence, advantage: float) -> tinker.Datum:
    """Makes the sampled answer likelier if it was better than its group; the prompt has advantage 0."""
    tokens, padding = prompt + list(sample.tokens), [0.0] * (len(prompt) - 1)
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData(data=tokens[1:], dtype="int64", shape=[len(tokens) - 1]),
            "logprobs": tensor(padding + list(sample.logprobs or ())),
            "advantages": tensor(padding + [advantage] * len(sample.tokens)),
        },
    )


def main() -> None:
    """Sample groups, reward them, step on importance_sampling; print the mean reward."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--model-dir", type=Path, help="directory with the model's tokenizer.json")
    parser.add_argument("--base-url", default=os.environ.get("TINKER_BASE_URL", "http://127.0.0.1:8000"))
    parser.add_argument("--api-key", default=os.environ.get("TINKER_API_KEY"))
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    model_dir = arguments.model_dir or Path.home() / ".cache" / "openrl" / "models" / arguments.model
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))

    service = tinker.ServiceClient(base_url=arguments.base_url, api_key=arguments.api_key)
    trainer = service.create_lora_training_client(arguments.model, rank=16, seed=0, train_unembed=False).result()
    rng = random.Random(0)
    for step in range(arguments.steps):
        sampler = trainer.save_weights_and_get_sampling_client().result()
        problems = rng.sample(PROBLEMS, PROMPTS)
        prompts = [tokenizer.encode(f"{SHOTS}{a} + {b} =").ids for a, b in problems]
        params = tinker.SamplingParams(max_tokens=5, stop=["\n"], seed=step)
        futures = [sampler.sample(tinker.ModelInput.from_ints(prompt), SAMPLES, params) for prompt in prompts]

        datums: list[tinker.Datum] = []
        all_rewards: list[float] = []
        for problem, prompt, future in zip(problems, prompts, futures, strict=True):
            samples = future.result().sequences
            rewards = [reward(tokenizer.decode(list(sample.tokens)), problem) for sample in samples]
            all_rewards += rewards
            mean, spread = statistics.fmean(rewards), statistics.pstdev(rewards)
            if spread > 0:  # a group of equal rewards says nothing about what is better
                datums += [datum(prompt, s, (r - mean) / spread) for s, r in zip(samples, rewards, strict=True)]
        print(f"step {step + 1:3}  mean reward {statistics.fmean(all_rewards):.2f}  trained on {len(datums)} samples")
        if datums:
            gradient = trainer.forward_backward(datums, "importance_sampling")
            trainer.optim_step(tinker.AdamParams(learning_rate=RATE)).result()
            gradient.result()


if __name__ == "__main__":
    main()
