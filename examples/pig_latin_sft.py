"""Supervised fine-tuning in its shortest form: a model learns pig latin from examples.

openrl serve --model smollm2-135m-instruct
python examples/pig_latin_sft.py --api-key tml-...
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import tinker
from tokenizers import Tokenizer

TRAIN_WORDS = """
banana table river garden music window yellow basket doctor summer winter paper kitchen mountain silver
dinner rabbit button cotton market pencil monkey turtle carpet ladder pocket rocket guitar forest bridge
"""
HELD_OUT_WORDS = "tiger lemon magnet puzzle hammer violin"
STEPS, BATCH, RATE = 30, 10, 1e-3


def pig_latin(word: str) -> str:
    """banana -> anana-bay: the vowel goes first, what stood before it goes last."""
    first_vowel = next(place for place, letter in enumerate(word) if letter in "aeiou")
    return f"{word[first_vowel:]}-{word[:first_vowel]}ay"


def prompt_of(word: str) -> str:
    """What the model continues."""
    return f"English: {word}\nPig latin:"


def datum(tokenizer: Tokenizer, word: str) -> tinker.Datum:
    """Teaches the answer and the line end after it; the prompt has weight 0."""
    prompt = tokenizer.encode(prompt_of(word)).ids
    answer = tokenizer.encode(f" {pig_latin(word)}\n", add_special_tokens=False).ids
    tokens, weights = prompt + answer, [0.0] * (len(prompt) - 1) + [1.0] * len(answer)
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData(data=tokens[1:], dtype="int64", shape=[len(weights)]),
            "weights": tinker.TensorData(data=weights, dtype="float32", shape=[len(weights)]),
        },
    )


def show(sampler: tinker.SamplingClient, tokenizer: Tokenizer, words: Sequence[str]) -> None:
    """Print the likeliest answer for each word."""
    params = tinker.SamplingParams(max_tokens=16, temperature=0.0, stop=["\n"])
    prompts = [tinker.ModelInput.from_ints(tokenizer.encode(prompt_of(word)).ids) for word in words]
    futures = [sampler.sample(prompt, 1, params) for prompt in prompts]
    for word, future in zip(words, futures, strict=True):
        answer = tokenizer.decode(list(future.result().sequences[0].tokens)).strip()
        print(f"  {word:10} {answer:16} {'right' if answer == pig_latin(word) else 'wrong'}")


def main() -> None:
    """Train, then ask for words that training never showed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--model-dir", type=Path, help="directory with the model's tokenizer.json")
    parser.add_argument("--base-url", default=os.environ.get("TINKER_BASE_URL", "http://127.0.0.1:8000"))
    parser.add_argument("--api-key", default=os.environ.get("TINKER_API_KEY"))
    arguments = parser.parse_args()
    model_dir = arguments.model_dir or Path.home() / ".cache" / "openrl" / "models" / arguments.model
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))

    service = tinker.ServiceClient(base_url=arguments.base_url, api_key=arguments.api_key)
    trainer = service.create_lora_training_client(arguments.model, rank=16, seed=0, train_unembed=False).result()
    words = TRAIN_WORDS.split()
    for step in range(STEPS):
        start = step * BATCH % len(words)
        batch = [datum(tokenizer, word) for word in words[start : start + BATCH]]
        gradient = trainer.forward_backward(batch, "cross_entropy")
        trainer.optim_step(tinker.AdamParams(learning_rate=RATE))  # submitted behind it, runs in order
        if step % 5 == 4:
            num_targets = sum(sum(each.loss_fn_inputs["weights"].data) for each in batch)
            print(f"step {step + 1:3}  loss per token {gradient.result().metrics['loss:sum'] / num_targets:.3f}")
    sampler = trainer.save_weights_and_get_sampling_client().result()
    print("words of the training set:")
    show(sampler, tokenizer, words[:3])
    print("words it has never seen:")
    show(sampler, tokenizer, HELD_OUT_WORDS.split())


if __name__ == "__main__":
    main()
