"""What the clients of bench.crash do: loops that follow from a seed, and a transcript of every answer.

A tenant is a process, its runs are threads of it. Each run's loop trains pipelined, samples from its snapshots and from
the base model, trains on what it sampled, saves, loads and deletes. All answers but ids follow from the seed, so a
loop of the same seed and number of rounds on another server writes the same transcript.
"""

import contextlib
import itertools
import json
import logging
import random
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tinker
from tests.contracts.loops import batch, connect, numbers, prompt_of, sampled
from tests.live_server import MODEL_NAME
from tinker import types

from bench.mux import datum_of

STOP_FILE = "stop"
FINAL_CHECKPOINT = "final"


@dataclass(frozen=True, slots=True)
class Tenant:
    """One client process. `rounds`: of each of its runs by number; empty: until the stop file is there."""

    name: str
    url: str
    key: str
    num_runs: int
    seed: int
    directory: Path
    rounds: tuple[int, ...] = ()

    def transcript(self, number: int) -> Path:
        """Where a run's loop writes."""
        return self.directory / f"{self.name}-{number}.jsonl"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as the client got it. `owner`: the run or sampler; `error`: the exception, and nothing follows."""

    number: int  # in the order of sending
    round: int
    kind: str
    owner: str
    value: Any
    sent_at: float  # on the machine's steady clock
    asked_at: float  # when the client began to wait
    done_at: float
    error: str = ""


@dataclass(slots=True)
class Transcript:
    """Notes answers in a file, one a line."""

    file: Path
    round: int = 0
    _count: "itertools.count[int]" = field(default_factory=itertools.count)

    def ask(self, kind: str, owner: str, future: Any, read: Callable[[Any], Any] = lambda _: None) -> "Question":
        """Something was sent."""
        return Question(self, next(self._count), kind, owner, future, read, time.monotonic())

    def note(self, answer: Answer) -> None:
        """Append; in the file when this returns."""
        with self.file.open("a") as out:
            out.write(json.dumps(asdict(answer)) + "\n")


@dataclass(slots=True)
class Question:
    """A call whose answer the loop will wait for."""

    transcript: Transcript
    number: int
    kind: str
    owner: str
    future: Any
    read: Callable[[Any], Any]
    sent_at: float

    def answer(self) -> Any:
        """Wait and note it; what the SDK returned."""
        asked_at = time.monotonic()
        got = self.future.result()
        done_at = time.monotonic()
        value = self.read(got)
        owner = self.owner or owner_of(got)
        self.transcript.note(
            Answer(self.number, self.transcript.round, self.kind, owner, value, self.sent_at, asked_at, done_at)
        )
        return got


def owner_of(client: Any) -> str:
    """The id of a run or sampler that has come into being."""
    return client.model_id if isinstance(client, tinker.TrainingClient) else client._sampling_session_id


def has_failed(transcript: Path) -> bool:
    """Whether the loop's last line says so."""
    with transcript.open("rb") as file:
        file.seek(max(0, transcript.stat().st_size - 2**16))
        return b'"kind": "error"' in file.read()


def run_tenant(tenant: Tenant) -> None:
    """The main function of a client process: returns when all loops have ended."""
    warnings.simplefilter("ignore", FutureWarning)  # load_state is deprecated and must work
    logging.disable(logging.WARNING)
    with connect(tenant.url, tenant.key) as service:
        threads = [threading.Thread(target=_run_loop, args=(tenant, service, i)) for i in range(tenant.num_runs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _run_loop(tenant: Tenant, service: tinker.ServiceClient, number: int) -> None:
    transcript = Transcript(tenant.transcript(number))
    rounds = range(tenant.rounds[number]) if tenant.rounds else itertools.count()
    try:
        loop = Loop(service, tenant.key, tenant.url, f"{tenant.seed}/{tenant.name}/{number}", transcript)
        for each in rounds:
            if not tenant.rounds and (tenant.directory / STOP_FILE).exists():
                break
            transcript.round = each
            loop.play(each)
        loop.finish()
    except Exception:  # noqa: BLE001  (whatever reaches a client is what this benchmark looks for)
        at = time.monotonic()
        transcript.note(Answer(-1, transcript.round, "error", "", None, at, at, at, traceback.format_exc()))


class Loop:
    """One researcher: a run, its newest sampler, and the base model's."""

    def __init__(self, service: tinker.ServiceClient, key: str, url: str, seed: str, transcript: Transcript) -> None:
        self._service = service
        self._rest = tinker.RestClient(base_url=url, api_key=key)
        self._seed = seed
        self._notes = transcript
        draw = random.Random(seed)
        created = service.create_lora_training_client(MODEL_NAME, rank=draw.choice([2, 4]), seed=draw.randrange(1000))
        self._run: tinker.TrainingClient = self._notes.ask("create_model", "", created).answer()
        self._base = service.create_sampling_client(base_model=MODEL_NAME).result()
        self._sampler = self._snapshot()

    def play(self, number: int) -> None:
        """One round: sample and train side by side, train on the samples, then what is its turn."""
        draw = random.Random(f"{self._seed}/{number}")
        prompts = [[draw.randrange(2, 500) for _ in range(draw.randrange(4, 20))] for _ in range(3)]
        samples = [
            self._sample(sampler, prompt, draw)
            for sampler, prompt in zip((self._sampler, self._sampler, self._base), prompts, strict=True)
        ]
        steps = [self._step(batch(3, 100 * number + i), "cross_entropy", draw) for i in range(draw.randrange(1, 4))]
        replies: list[types.SampleResponse] = [each.answer() for each in samples]
        _answer_all(steps)
        data = [
            datum_of(prompt, each, draw.gauss(0.0, 1.0))
            for prompt, reply in zip(prompts[:2], replies[:2], strict=True)
            for each in reply.sequences
        ]
        if number % 3 == 1:
            self._ask("forward", self._run.forward(data, "importance_sampling"), _numbers).answer()
        _answer_all([self._step(data, "importance_sampling", draw)])
        self._keep(number)
        time.sleep(draw.uniform(0.0, 0.3))

    def finish(self) -> None:
        """Save what the run has come to."""
        self._ask("save_weights", self._run.save_state(FINAL_CHECKPOINT)).answer()

    def _keep(self, number: int) -> None:
        match number % 6:
            case 0 | 2:
                self._sampler = self._snapshot()
            case 1:
                saved = self._ask("save_weights_for_sampler", self._run.save_weights_for_sampler(f"s{number}")).answer()
                self._sampler = self._run.create_sampling_client(saved.path).result()
            case 3:
                self._ask("save_weights", self._run.save_state("latest", overwrite=True)).answer()
            case 4:
                self._move(number)
            case _:
                self._go_back(number)

    def _move(self, number: int) -> None:
        """Go on in a new run, from a checkpoint that is deleted as soon as it is loaded."""
        path = self._ask("save_weights", self._run.save_state(f"move{number}")).answer().path
        loaded = self._service.create_training_client_from_state_with_optimizer(path)
        self._run = self._notes.ask("load_weights", "", loaded).answer()
        self._delete(path)

    def _go_back(self, number: int) -> None:
        """Load an older state into the run, with more in flight behind it; then delete its checkpoint."""
        path = self._ask("save_weights", self._run.save_state(f"back{number}")).answer().path
        stepped = self._step(batch(2, number), "cross_entropy", random.Random(number))
        loaded = self._run.load_state_with_optimizer(path)  # pyright: ignore[reportDeprecated]
        loading = self._ask("load_weights", loaded)
        after = self._step(batch(2, number + 1), "cross_entropy", random.Random(number + 1))
        _answer_all([stepped])
        loading.answer()
        self._delete(path)
        _answer_all([after])

    def _delete(self, path: str) -> None:
        """A deletion whose answer was lost is repeated by the SDK, and the checkpoint is not there: true, so fine."""
        with contextlib.suppress(tinker.NotFoundError):
            self._rest.delete_checkpoint_from_tinker_path(path).result()

    def _step(self, data: list[types.Datum], loss: Any, draw: random.Random) -> tuple[Question, Question]:
        passed = self._ask("forward_backward", self._run.forward_backward(data, loss), _numbers)
        params = types.AdamParams(learning_rate=draw.uniform(1e-3, 1e-2), weight_decay=0.01)
        return passed, self._ask("optim_step", self._run.optim_step(params), lambda got: got.metrics)

    def _sample(self, sampler: tinker.SamplingClient, prompt: list[int], draw: random.Random) -> Question:
        params = types.SamplingParams(max_tokens=draw.randrange(4, 24), seed=draw.randrange(2**31), stop=[])
        return self._notes.ask("sample", owner_of(sampler), sampler.sample(prompt_of(prompt), 2, params), _sampled)

    def _snapshot(self) -> tinker.SamplingClient:
        return self._ask("save_weights_for_sampler", self._run.save_weights_and_get_sampling_client()).answer()

    def _ask(self, kind: str, future: Any, read: Callable[[Any], Any] = lambda _: None) -> Question:
        return self._notes.ask(kind, self._run.model_id, future, read)


def _answer_all(steps: Sequence[tuple[Question, Question]]) -> None:
    for passed, stepped in steps:
        passed.answer()
        stepped.answer()


def _numbers(output: types.ForwardBackwardOutput) -> Any:
    return asdict(numbers(output))


def _sampled(response: types.SampleResponse) -> Any:
    return [asdict(each) for each in sampled(response)]
