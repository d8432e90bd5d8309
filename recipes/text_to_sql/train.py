"""Teaches a small model to answer questions with SQL: supervised warm-up, then reinforcement on execution.

Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms
"""

import os

import tinker
from rich.console import Console

from recipes.run import Run, begin
from recipes.text_to_sql.codec import Codec
from recipes.text_to_sql.evaluation import Evaluation, evaluate
from recipes.text_to_sql.grader import Grader
from recipes.text_to_sql.portability import Portability, compare, download_adapter
from recipes.text_to_sql.progress import Monitor
from recipes.text_to_sql.questions import Question, Split, make_split
from recipes.text_to_sql.report import results_table, write_curves, write_json
from recipes.text_to_sql.settings import Settings
from recipes.text_to_sql.training import reinforce, warm_up


class TextToSql:
    """One run of the recipe against a server."""

    def __init__(self, run: Run[Settings], grader: Grader, monitor: Monitor) -> None:
        self.recipe, self.settings, self.monitor, self.grader = run, run.settings, monitor, grader
        self.codec = Codec(run.tokenizer)
        settings = run.settings
        num_train = settings.sft_steps * settings.sft_batch + settings.steps * settings.rl_prompts
        self.split: Split = make_split(num_train, settings.eval_questions, settings.max_level, settings.seed)
        self.evaluations: dict[str, Evaluation] = {}

    def run(self) -> None:
        """Base, warm-up, reinforcement; each measured on the held-out questions."""
        settings, service = self.settings, self.recipe.service
        trainer = service.create_lora_training_client(
            settings.model, rank=settings.rank, seed=settings.seed, train_unembed=False
        ).result()
        self.measure("base", service.create_sampling_client(base_model=settings.model).result())
        num_supervised = settings.sft_steps * settings.sft_batch
        warm_up_questions, rl_questions = self.split.train[:num_supervised], self.split.train[num_supervised:]
        warm_up(trainer, warm_up_questions, self.codec, settings, self.monitor.phase("warm-up", settings.sft_steps))
        self.measure("after SFT", trainer.save_weights_and_get_sampling_client().result())
        phase = self.monitor.phase("reinforcement", settings.steps)
        reinforce(trainer, rl_questions, self.codec, self.grader, settings, phase)
        path = trainer.save_weights_for_sampler(name="text-to-sql").result().path
        sampler = service.create_sampling_client(model_path=path).result()
        self.measure("after RL", sampler)
        self.report(self.check_portability(sampler, path))

    def measure(self, stage: str, sampler: tinker.SamplingClient) -> None:
        """Held-out accuracy of a stage."""
        settings = self.settings
        evaluation = evaluate(
            sampler, self.split.held_out, self.codec, self.grader, settings.max_tokens, settings.eval_samples
        )
        self.evaluations[stage] = evaluation
        accuracy = f"greedy {evaluation.greedy:.0%}, pass@{evaluation.k} {evaluation.pass_at_k:.0%}"
        self.monitor.note(f"held-out {stage}: {accuracy}")

    def check_portability(self, sampler: tinker.SamplingClient, path: str) -> Portability:
        """Download the adapter, load it with PEFT, compare."""
        adapter_dir = self.recipe.out / "adapter"
        download_adapter(os.environ["TINKER_BASE_URL"], os.environ["TINKER_API_KEY"], path, adapter_dir)
        sequences = [self.tokens(question) for question in self.split.held_out[:4]]
        return compare(sampler, self.settings.directory, adapter_dir, sequences)

    def tokens(self, question: Question) -> list[int]:
        """A question with its gold answer."""
        return self.codec.prompt(question) + self.codec.completion(question)

    def report(self, portability: Portability) -> None:
        """Print the table; write the picture and the JSON files."""
        out, console, records = self.recipe.out, self.monitor.console, self.monitor.records
        total_s = self.monitor.elapsed_s
        write_curves(out / "curves.png", records, self.evaluations)
        write_json(out / "results.json", self.settings, records, self.evaluations, portability, total_s)
        console.print(results_table(self.evaluations, len(self.split.held_out)))
        console.print(
            f"PEFT's log-probabilities are {portability.verdict} the server's: {portability.mean_difference:.1e} apart "
            f"in the mean, at most {portability.max_difference:.1e}, on {portability.num_tokens} tokens"
        )
        base, sft, after = (self.evaluations[stage].greedy for stage in ("base", "after SFT", "after RL"))
        self.recipe.finish(before=base, after_sft=sft, after=after)
        console.print(f"{total_s / 60:.1f} minutes; results, curves and adapter in {out}")


def main() -> None:
    """Run the recipe."""
    with begin(Settings, __file__) as run, Grader() as grader, Monitor(Console()).shown() as monitor:
        TextToSql(run, grader, monitor).run()


if __name__ == "__main__":
    main()
