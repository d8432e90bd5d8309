"""Supervised fine-tuning in its shortest form: a model learns pig latin, letter by letter.

openrl models fetch smollm2-135m-instruct
openrl serve --model smollm2-135m-instruct    # in another terminal; paste the two lines it prints
python examples/pig_latin_sft.py

76 seconds on one CPU core. Right answers to 20 words it never saw, seeds 0, 1, 2: 0 before; 16, 17, 14 after.
"""

import argparse
import os
import random
import time
from pathlib import Path

import tinker
from tokenizers import Tokenizer

TRAIN_WORDS = """banana table river garden music window yellow basket doctor summer winter paper kitchen mountain
silver dinner rabbit button cotton market pencil monkey turtle carpet ladder pocket rocket guitar forest bridge flower
cherry sister brother bread green train school street stone shoulder glass black clean plant present promise cloud
three tree drum draw friend fruit spoon snow small swim sleep chalk ship house"""
HELD_OUT_WORDS: str = """tiger lemon magnet puzzle hammer violin camel dragon planet spider castle feather thunder
blanket chicken saddle pepper trumpet shadow spinach"""
STEPS, BATCH, RATE = 20, 12, 1e-3


def pig_latin(word: str) -> str:
    """banana -> ananabay: what stands before the first vowel goes to the end, then "ay"."""
    first_vowel = next(place for place, letter in enumerate(word) if letter in "aeiou")
    return word[first_vowel:] + word[:first_vowel] + "ay"


def prompt_of(word: str) -> str:
    """What the model continues. Letters stand apart: inside a word the model does not see them."""
    return f"English: {' '.join(word)}\nPig latin:"


def datum(tokenizer: Tokenizer, word: str) -> tinker.Datum:
    """Teaches the answer and the line end after it; the prompt has weight 0."""
    prompt = tokenizer.encode(prompt_of(word)).ids
    answer = tokenizer.encode(f" {' '.join(pig_latin(word))}\n", add_special_tokens=False).ids
    tokens, weights = prompt + answer, [0.0] * (len(prompt) - 1) + [1.0] * len(answer)
    inputs = {
        "target_tokens": tinker.TensorData(tokens[1:], "int64"),  # what should follow each token
        "weights": tinker.TensorData(weights, "float32"),
    }
    return tinker.Datum(tinker.ModelInput.from_ints(tokens[:-1]), inputs)


def answers(sampler: tinker.SamplingClient, tokenizer: Tokenizer, words: list[str]) -> list[str]:
    """The likeliest answer to each word, its letters joined."""
    params = tinker.SamplingParams(max_tokens=20, temperature=0.0, stop=["\n"])
    prompts = [tinker.ModelInput.from_ints(tokenizer.encode(prompt_of(word)).ids) for word in words]
    futures = [sampler.sample(prompt, 1, params) for prompt in prompts]  # all are sent before the first is awaited
    return ["".join(tokenizer.decode(list(future.result().sequences[0].tokens)).split()) for future in futures]


def main() -> None:
    """Ask for words that training never shows, train, ask again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--model-dir", type=Path, help="directory with the model's tokenizer.json")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not os.environ.get("TINKER_API_KEY"):
        parser.error("the variable TINKER_API_KEY is not set: paste the two lines that `openrl serve` prints")
    model_dir = args.model_dir or Path.home() / ".cache" / "openrl" / "models" / args.model
    if not (tokenizer_file := model_dir / "tokenizer.json").exists():
        parser.error(f"{tokenizer_file} does not exist: `openrl models fetch {args.model}`, or --model-dir")

    tokenizer, rng, start = Tokenizer.from_file(str(tokenizer_file)), random.Random(args.seed), time.monotonic()
    held_out = HELD_OUT_WORDS.split()
    right = [pig_latin(word) for word in held_out]
    base_url = os.environ.get("TINKER_BASE_URL", "http://127.0.0.1:8000")
    print(f"teaching {args.model} pig latin at {base_url}", flush=True)
    with tinker.ServiceClient(base_url=base_url) as service:  # whose threads must not outlive the work
        before = answers(service.create_sampling_client(base_model=args.model).result(), tokenizer, held_out)
        trainer = service.create_lora_training_client(args.model, 16, args.seed, train_unembed=False).result()
        for step in range(args.steps):
            batch = [datum(tokenizer, word) for word in rng.sample(TRAIN_WORDS.split(), BATCH)]
            gradient = trainer.forward_backward(batch, "cross_entropy")
            trainer.optim_step(tinker.AdamParams(learning_rate=RATE * (1 - step / args.steps)))  # waits its turn
            num_taught = sum(sum(each.loss_fn_inputs["weights"].data) for each in batch)
            loss = gradient.result().metrics["loss:sum"] / num_taught
            note = f"step {step + 1:2}/{args.steps}  loss per token {loss:.3f}"
            print(f"{time.monotonic() - start:4.0f} s  {note}", flush=True)
        after = answers(trainer.save_weights_and_get_sampling_client().result(), tokenizer, held_out)
    print(f"\n{'held-out word':14} {'before':22} after")
    for word, old, new, wanted in zip(held_out, before, after, right, strict=True):
        print(f"{word:14} {old[:20]:22} {new:18} {'right' if new == wanted else 'wrong'}")
    scores = [sum(map(str.__eq__, each, right)) for each in (before, after)]
    print(f"held-out words right: {scores[0]} of {len(right)} before, {scores[1]} after")


if __name__ == "__main__":
    main()
