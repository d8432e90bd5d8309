"""What bench.crash checks when all is over: the log, the results, the files, and a twin that nobody disturbed."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import safetensors
import safetensors.torch
from sqlalchemy import Row, create_engine, select
from tests.contracts.loops import numbers, sampled
from tests.contracts.raw_api import RawApi
from tinker.proto.response_conv import deserialize_sample_response

from bench.crash_jobs import FINAL_CHECKPOINT, Answer
from openrl.errors import NotFound
from openrl.store.base import Blobs
from openrl.store.schema import checkpoints, doomed_objects, requests, runs, samplers

MAX_FETCHED = 4000
MAX_EXAMPLES = 5
Transcripts = Mapping[str, Sequence[Answer]]
"""Answers by loop, in the order of sending."""


@dataclass(slots=True)
class Findings:
    """What is wrong, counted by what it is, with a few examples of each; empty when all is well."""

    counts: dict[str, int] = field(default_factory=lambda: defaultdict[str, int](int))
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict[str, list[str]](list))

    def add(self, what: str, example: str, count: int = 1) -> None:
        """Something is wrong `count` times."""
        self.counts[what] += count
        if len(self.examples[what]) < MAX_EXAMPLES:
            self.examples[what].append(example)


def read_transcripts(files: Iterable[Path]) -> Transcripts:
    """What the loops wrote, by file name without its ending."""
    found: dict[str, list[Answer]] = {}
    for file in files:
        lines = file.read_text().splitlines() if file.exists() else []
        found[file.stem] = sorted((Answer(**json.loads(line)) for line in lines), key=lambda each: each.number)
    return found


def check_clients(transcripts: Transcripts, findings: Findings) -> None:
    """No client saw an error, and every loop came to its end."""
    for name, answers in transcripts.items():
        errors = [each for each in answers if each.error]
        for each in errors:
            findings.add("errors", f"{name} in round {each.round}: {each.error[-1500:]}")
        if not errors and not (answers and answers[-1].kind == "save_weights"):
            findings.add("errors", f"{name} hangs after {len(answers)} answers")


def compare_with_twin(ours: Transcripts, twin: Transcripts, findings: Findings) -> None:
    """Every answer is the twin's."""
    for name, answers in ours.items():
        others = twin[name]
        if len(answers) != len(others):
            findings.add("differing", f"{name}: {len(answers)} answers, the twin has {len(others)}")
        for one, other in zip(answers, others, strict=False):
            if (one.kind, one.value) != (other.kind, other.value):
                findings.add("differing", f"{name}, answer {one.number} ({one.kind}) of round {one.round}")


class Log:
    """The rows that the installation left."""

    def __init__(self, database_url: str) -> None:
        engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
        with engine.connect() as connection:
            ordered = select(requests).order_by(requests.c.seq_id, requests.c.position)
            self.requests = list(connection.execute(ordered))
            self.checkpoints = list(connection.execute(select(checkpoints)))
            self.samplers = list(connection.execute(select(samplers)))
            self.runs = list(connection.execute(select(runs)))
            self.doomed = [row.key for row in connection.execute(select(doomed_objects))]
        engine.dispose()
        self.by_owner: dict[str, list[Row[Any]]] = defaultdict(list)
        for row in self.requests:
            self.by_owner[row.run_id or row.sampler_id].append(row)

    def final_key(self, answers: Sequence[Answer]) -> str:
        """Where the last state of a loop's last run is."""
        run_id = answers[-1].owner
        [key] = [row.key for row in self.checkpoints if (row.run_id, row.name) == (run_id, FINAL_CHECKPOINT)]
        return key


def check_log(log: Log, transcripts: Transcripts, findings: Findings) -> list[tuple[Row[Any], Answer]]:
    """Every answer has one row, every row one answer, in order and done; returns the pairs."""
    for row in log.requests:
        if row.state != "done":
            findings.add("queued" if row.state == "queued" else "failed", f"{row.dedupe_key}: {row.state} {row.error}")
    pairs: list[tuple[Row[Any], Answer]] = []
    by_owner: dict[str, list[Answer]] = defaultdict(list)
    for answer in (each for answers in transcripts.values() for each in answers if not each.error):
        by_owner[answer.owner].append(answer)
    for owner, answers in by_owner.items():
        rows = log.by_owner[owner]
        if len(rows) < len(answers):
            findings.add("lost", f"{owner}: {len(rows)} rows for {len(answers)} answers", len(answers) - len(rows))
        if len(rows) > len(answers):
            findings.add("doubled", f"{owner}: {len(rows)} rows for {len(answers)} answers", len(rows) - len(answers))
        first = 0 if rows and rows[0].run_id else rows[0].seq_id if rows else 0
        if [row.seq_id for row in rows] != list(range(first, first + len(rows))):
            findings.add("gaps", f"{owner}: {[row.seq_id for row in rows]}")
        if [row.kind for row in rows] != [answer.kind for answer in answers]:
            findings.add("disordered", owner)
        pairs += zip(rows, answers, strict=False)
    return pairs


def check_results(url: str, keys: Mapping[str, str], pairs: Sequence[tuple[Row[Any], Answer]], found: Findings) -> int:
    """Results fetched again are those that were delivered, evenly chosen where there are many; how many were."""
    chosen = [pair for pair in pairs if pair[1].value is not None]
    chosen = chosen[:: 1 + len(chosen) // MAX_FETCHED]
    for tenant, key in keys.items():
        with httpx.Client(base_url=f"{url}/api/v1/", headers={"X-API-Key": key}, timeout=60) as http:
            api = RawApi(http)
            for row, answer in chosen:
                if row.tenant_id == tenant and _fetch(api, row.kind, row.request_id) != answer.value:
                    found.add("refetched", f"{row.dedupe_key} ({row.kind})")
    return len(chosen)


def _fetch(api: RawApi, kind: str, request_id: str) -> Any:
    match kind:
        case "forward" | "forward_backward":
            return asdict(numbers(api.output(request_id)))
        case "sample":
            reply = deserialize_sample_response(api.poll(request_id).content)
            return json.loads(json.dumps([asdict(each) for each in sampled(reply)]))
        case _:
            return api.result(request_id)["metrics"]


def check_files(log: Log, blobs: Blobs, findings: Findings) -> int:
    """Every file that a row refers to is whole, and so is every other; how many objects there are."""
    for row in log.checkpoints:
        try:
            size = sum(blobs.list_object(row.key).values())
        except NotFound:
            findings.add("files", f"{row.key} of a checkpoint is not there")
            continue
        if size != row.size_bytes:
            findings.add("files", f"{row.key} has {size} bytes, its row says {row.size_bytes}")
    referred = {row.adapter_key for row in log.samplers if row.adapter_key and not row.is_ephemeral}
    referred |= {row.snapshot_key for row in log.runs if row.snapshot_key and not row.is_closed}
    keys = blobs.list_objects("")
    for key in referred - keys.keys():
        findings.add("files", f"{key} is not there")
    for key in log.doomed:
        findings.add("files", f"{key} is doomed still")
    for key in keys:
        _check_object(key, blobs, findings)
    for row in log.requests:
        if row.result_ref:
            try:
                blobs.get_payload(row.result_ref)
            except NotFound as error:
                findings.add("files", f"result of {row.dedupe_key}: {error}")
    return len(keys)


def _check_object(key: str, blobs: Blobs, findings: Findings) -> None:
    try:
        files = blobs.get_object(key)
        for name, data in files.items():
            if name.endswith(".safetensors"):
                safetensors.torch.load(data)  # its header must fit its bytes
            elif name.endswith(".json"):
                json.loads(data)
        if not files:
            findings.add("files", f"{key} is empty")
    except (NotFound, safetensors.SafetensorError, ValueError) as error:
        findings.add("files", f"{key}: {error}")


def check_weights(ours: Mapping[str, dict[str, bytes]], twin: Mapping[str, dict[str, bytes]], found: Findings) -> None:
    """The files of the last checkpoints are the twin's, bit for bit."""
    for name, files in ours.items():
        for file, data in files.items():
            if twin[name].get(file) != data:
                found.add("differing_weights", f"{name}: {file}")


def final_files(log: Log, blobs: Blobs, transcripts: Transcripts) -> dict[str, dict[str, bytes]]:
    """The last checkpoint of each loop that came to its end."""
    ended = {name: answers for name, answers in transcripts.items() if answers[-1:] and answers[0].number == 0}
    return {name: blobs.get_object(log.final_key(answers)) for name, answers in ended.items()}
