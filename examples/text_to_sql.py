"""Teaches a small model to answer questions with SQL: supervised warm-up, then reinforcement on execution.

    openrl models fetch gemma-3-270m
    openrl serve --model gemma-3-270m        # in another terminal; prints an API key
    python examples/text_to_sql.py --api-key tml-...

Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms
"""

import argparse
import dataclasses
import os
from pathlib import Path

import tinker
from rich.console import Console
from tokenizers import Tokenizer

from sql.datums import Codec
from sql.evaluation import Evaluation, evaluate
from sql.grader import Grader
from sql.portability import Portability, compare, download_adapter
from sql.progress import Monitor
from sql.questions import Question, Split, make_split
from sql.report import results_table, write_curves, write_json
from sql.settings import FULL, QUICK, Settings
from sql.training import reinforce, warm_up

MODELS_DIR = Path.home() / ".cache" / "openrl" / "models"


def parse_arguments() -> argparse.Namespace:
    """The command line; the address and the key also come from the variables of the SDK."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("quick", "full"), default="quick")
    parser.add_argument("--model", default="gemma-3-270m", help="the server's name of the base model")
    parser.add_argument("--model-dir", type=Path, help="its directory (tokenizer, and weights for the PEFT check)")
    parser.add_argument("--base-url", default=os.environ.get("TINKER_BASE_URL", "http://127.0.0.1:8000"))
    parser.add_argument("--api-key", default=os.environ.get("TINKER_API_KEY"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("text_to_sql_results"))
    parser.add_argument("--sft-steps", type=int, help="overrides the size's number of warm-up steps")
    parser.add_argument("--rl-steps", type=int, help="overrides the size's number of reinforcement steps")
    arguments = parser.parse_args()
    if not arguments.api_key:
        parser.error("an API key is needed: --api-key, or the variable TINKER_API_KEY")
    return arguments


def chosen_settings(arguments: argparse.Namespace) -> Settings:
    """The settings of the size, with what the command line overrides."""
    given = {"sft_steps": arguments.sft_steps, "rl_steps": arguments.rl_steps}
    size = QUICK if arguments.size == "quick" else FULL
    return dataclasses.replace(size, **{name: value for name, value in given.items() if value is not None})


class Demo:
    """One run of the demo against a server."""

    def __init__(
        self, arguments: argparse.Namespace, settings: Settings, monitor: Monitor, service: tinker.ServiceClient
    ) -> None:
        self.arguments, self.settings, self.monitor = arguments, settings, monitor
        self.model_dir: Path = arguments.model_dir or MODELS_DIR / arguments.model
        self.codec = Codec(Tokenizer.from_file(str(self.model_dir / "tokenizer.json")))
        self.grader = Grader()
        num_train = settings.sft_steps * settings.sft_batch + settings.rl_steps * settings.rl_prompts
        self.split: Split = make_split(num_train, settings.eval_questions, settings.max_level, arguments.seed)
        self.evaluations: dict[str, Evaluation] = {}
        self.service = service

    def run(self) -> None:
        """Base, warm-up, reinforcement; each measured on the held-out questions."""
        settings, seed = self.settings, self.arguments.seed
        trainer = self.service.create_lora_training_client(
            self.arguments.model, rank=settings.rank, seed=seed, train_unembed=False
        ).result()
        self.measure("base", self.service.create_sampling_client(base_model=self.arguments.model).result())
        num_supervised = settings.sft_steps * settings.sft_batch
        warm_up_questions, rl_questions = self.split.train[:num_supervised], self.split.train[num_supervised:]
        warm_up(trainer, warm_up_questions, self.codec, settings, self.monitor.phase("warm-up", settings.sft_steps))
        self.measure("after SFT", trainer.save_weights_and_get_sampling_client().result())
        phase = self.monitor.phase("reinforcement", settings.rl_steps)
        reinforce(trainer, rl_questions, self.codec, self.grader, settings, seed, phase)
        path = trainer.save_weights_for_sampler(name="text-to-sql").result().path
        sampler = self.service.create_sampling_client(model_path=path).result()
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
        adapter_dir = self.arguments.out / "adapter"
        download_adapter(self.arguments.base_url, self.arguments.api_key, path, adapter_dir)
        return compare(sampler, self.model_dir, adapter_dir, [self.tokens(q) for q in self.split.held_out[:4]])

    def tokens(self, question: Question) -> list[int]:
        """A question with its gold answer."""
        return self.codec.prompt(question) + self.codec.completion(question)

    def report(self, portability: Portability) -> None:
        """Print the table; write the picture and the JSON file."""
        out: Path = self.arguments.out
        console, records = self.monitor.console, self.monitor.records
        total_s = self.monitor.elapsed_s
        write_curves(out / "curves.png", records, self.evaluations)
        write_json(
            out / "results.json", self.settings, self.arguments.seed, records, self.evaluations, portability, total_s
        )
        console.print(results_table(self.evaluations, len(self.split.held_out)))
        console.print(
            f"PEFT's log-probabilities are {portability.verdict} the server's: {portability.mean_difference:.1e} apart "
            f"in the mean, at most {portability.max_difference:.1e}, on {portability.num_tokens} tokens"
        )
        console.print(f"{total_s / 60:.1f} minutes; results, curves and adapter in {out}")


def main() -> None:
    """Run the demo."""
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    # Closed at the end: a client left to the interpreter's exit works on in a thread that the exit breaks off.
    with (
        tinker.ServiceClient(base_url=arguments.base_url, api_key=arguments.api_key) as service,
        Monitor(Console()).shown() as monitor,
    ):
        Demo(arguments, chosen_settings(arguments), monitor, service).run()


if __name__ == "__main__":
    main()
