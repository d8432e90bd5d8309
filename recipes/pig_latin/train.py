"""Supervised fine-tuning in its shortest form: a model learns pig latin, letter by letter."""

import random
from dataclasses import dataclass

import tinker

from recipes.datums import supervised
from recipes.run import Run, Settings, begin

TRAIN_WORDS: str = """banana table river garden music window yellow basket doctor summer winter paper kitchen mountain
silver dinner rabbit button cotton market pencil monkey turtle carpet ladder pocket rocket guitar forest bridge flower
cherry sister brother bread green train school street stone shoulder glass black clean plant present promise cloud
three tree drum draw friend fruit spoon snow small swim sleep chalk ship house"""
HELD_OUT_WORDS: str = """tiger lemon magnet puzzle hammer violin camel dragon planet spider castle feather thunder
blanket chicken saddle pepper trumpet shadow spinach"""


@dataclass(frozen=True, kw_only=True)
class PigLatin(Settings):
    """Settings of this recipe."""

    batch: int
    """Words in a step."""


def pig_latin(word: str) -> str:
    """banana -> ananabay: what stands before the first vowel goes to the end, then "ay"."""
    first_vowel = next(place for place, letter in enumerate(word) if letter in "aeiou")
    return word[first_vowel:] + word[:first_vowel] + "ay"


def prompt_of(word: str) -> str:
    """What the model continues. Letters stand apart: inside a word the model does not see them."""
    return f"English: {' '.join(word)}\nPig latin:"


def answers(run: Run[PigLatin], sampler: tinker.SamplingClient, words: list[str]) -> list[str]:
    """The likeliest answer to each word, its letters joined."""
    params = tinker.SamplingParams(max_tokens=20, temperature=0.0, stop=["\n"])
    prompts = [tinker.ModelInput.from_ints(run.encode(prompt_of(word))) for word in words]
    futures = [sampler.sample(prompt, 1, params) for prompt in prompts]  # all are sent before the first is awaited
    return ["".join(run.decode(future.result().sequences[0].tokens).split()) for future in futures]


def main() -> None:
    """Ask for words that training never shows, train, ask again."""
    with begin(PigLatin, __file__) as run:
        settings, rng, held_out = run.settings, random.Random(run.settings.seed), HELD_OUT_WORDS.split()
        base = run.service.create_sampling_client(base_model=settings.model).result()
        before = answers(run, base, held_out)
        trainer = run.service.create_lora_training_client(
            settings.model, settings.rank, settings.seed, train_unembed=False
        ).result()
        for step in range(settings.steps):
            words = rng.sample(TRAIN_WORDS.split(), settings.batch)
            taught = [run.encode_more(f" {' '.join(pig_latin(word))}\n") for word in words]
            batch = [
                supervised(run.encode(prompt_of(word)), letters) for word, letters in zip(words, taught, strict=True)
            ]
            gradient = trainer.forward_backward(batch, "cross_entropy")
            rate = settings.learning_rate * (1 - step / settings.steps)
            trainer.optim_step(tinker.AdamParams(learning_rate=rate))  # queued behind the gradient, in order
            loss = gradient.result().metrics["loss:sum"] / sum(map(len, taught))
            if run.record(step + 1, loss=loss):
                break
        after = answers(run, trainer.save_weights_and_get_sampling_client().result(), held_out)
        right = [pig_latin(word) for word in held_out]
        print(f"\n{'held-out word':14} {'before':22} after")
        for word, old, new, wanted in zip(held_out, before, after, right, strict=True):
            print(f"{word:14} {old[:20]:22} {new:18} {'right' if new == wanted else 'wrong'}")
        scores = [sum(map(str.__eq__, each, right)) / len(right) for each in (before, after)]
        run.finish(before=scores[0], after=scores[1])


if __name__ == "__main__":
    main()
