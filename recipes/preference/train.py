"""Preference learning: DPO, a loss of the client's own, through `forward_backward_custom`."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import tinker
import torch
from torch.nn.functional import logsigmoid

from recipes.datums import supervised
from recipes.preference.pairs import Pair, make_split
from recipes.run import Run, Settings, begin

Loss = Callable[[list[tinker.Datum], list[torch.Tensor]], tuple[torch.Tensor, dict[str, float]]]


@dataclass(frozen=True, kw_only=True)
class Preference(Settings):
    """Settings of this recipe."""

    pairs: int
    """Preferences in a step."""
    beta: float
    """How hard it is to leave the reference."""
    samples: int
    """Answers sampled to each held-out question."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A pair as tokens."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def answer_logprobs(sampler: tinker.SamplingClient, pairs: Sequence[Tokens]) -> list[tuple[float, float]]:
    """The log-probability of each pair's two answers, under the weights of the sampler."""
    sequences = [(each.prompt, answer) for each in pairs for answer in (each.chosen, each.rejected)]
    futures = [sampler.compute_logprobs(tinker.ModelInput.from_ints(p + answer)) for p, answer in sequences]
    sums = [
        sum(value or 0.0 for value in future.result()[len(prompt) :])
        for (prompt, _), future in zip(sequences, futures, strict=True)
    ]
    return list(zip(sums[::2], sums[1::2], strict=True))


def dpo(reference: Sequence[tuple[float, float]], beta: float) -> Loss:
    """-log sigmoid of how much more than the reference the policy prefers the chosen answer, in the mean.

    Datums come in pairs: the chosen answer, then the rejected one.
    """

    def loss(datums: list[tinker.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        weights = [torch.tensor(datum.loss_fn_inputs["weights"].data) for datum in datums]
        answers = torch.stack([(each * weight).sum() for each, weight in zip(logprobs, weights, strict=True)])
        margins = (answers[::2] - answers[1::2]) - torch.tensor([chosen - rejected for chosen, rejected in reference])
        value = -logsigmoid(beta * margins).mean()
        return value, {"accuracy": (margins > 0).float().mean().item(), "margin": margins.mean().item()}

    return loss


def preferred(
    sampler: tinker.SamplingClient, pairs: Sequence[Tokens], reference: Sequence[tuple[float, float]]
) -> float:
    """Share of pairs whose chosen answer has gained on the rejected one since the reference."""
    margins = [(c - r) - (c0 - r0) for (c, r), (c0, r0) in zip(answer_logprobs(sampler, pairs), reference, strict=True)]
    return fmean(margin > 0 for margin in margins)


def wins(run: Run[Preference], sampler: tinker.SamplingClient, pairs: Sequence[Pair]) -> tuple[float, float]:
    """Of sampled answers: the share in the preferred form, and the share that names the right capital."""
    params = tinker.SamplingParams(max_tokens=16, stop=["\n"], seed=1)
    prompts = [tinker.ModelInput.from_ints(run.encode(pair.prompt)) for pair in pairs]
    futures = [sampler.sample(prompt, run.settings.samples, params) for prompt in prompts]
    answers = [
        (pair, run.decode(sample.tokens))
        for pair, future in zip(pairs, futures, strict=True)
        for sample in future.result().sequences
    ]
    return fmean(pair.is_wanted(text) for pair, text in answers), fmean(pair.is_right(text) for pair, text in answers)


def main() -> None:
    """Reference log-probabilities once; then steps on pairs; measured on pairs about other countries."""
    with begin(Preference, __file__) as run:
        settings, rng = run.settings, random.Random(run.settings.seed)
        train, held_out = make_split(settings.seed)

        def tokens_of(pair: Pair) -> Tokens:
            return Tokens(run.encode(pair.prompt), run.encode_more(pair.chosen), run.encode_more(pair.rejected))

        train_tokens, held_out_tokens = [tokens_of(pair) for pair in train], [tokens_of(pair) for pair in held_out]
        base = run.service.create_sampling_client(base_model=settings.model).result()
        reference, held_out_reference = answer_logprobs(base, train_tokens), answer_logprobs(base, held_out_tokens)
        before = wins(run, base, held_out)
        trainer = run.service.create_lora_training_client(
            settings.model, settings.rank, settings.seed, train_unembed=False
        ).result()
        for step in range(settings.steps):
            places = rng.sample(range(len(train)), settings.pairs)
            batch = [train_tokens[place] for place in places]
            datums = [supervised(each.prompt, answer) for each in batch for answer in (each.chosen, each.rejected)]
            loss = dpo([reference[place] for place in places], settings.beta)
            gradient = trainer.forward_backward_custom(datums, loss).result()
            rate = settings.learning_rate * (1 - step / settings.steps)
            trainer.optim_step(tinker.AdamParams(learning_rate=rate)).result()
            if run.record(step + 1, accuracy=gradient.metrics["accuracy"], margin=gradient.metrics["margin"]):
                break
        sampler = trainer.save_weights_and_get_sampling_client().result()
        after = wins(run, sampler, held_out)
        run.finish(
            before=before[0],
            after=after[0],
            right_before=before[1],
            right_after=after[1],
            pairs_preferred=preferred(sampler, held_out_tokens, held_out_reference),
        )


if __name__ == "__main__":
    main()
