"""The traffic of one tenant: runs that train in small steps, and samples in flight, over plain HTTP.

Bodies are the SDK's; every request in flight has its own connection with a long poll, as the SDK has. Submissions go
to any gateway, polls to the one that their connection leads to.
"""

import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from bench.http_load import KeepAliveClient, Reply
from bench.soak.checks import gradient_fault, json_fault, loss_of, sample_fault
from bench.soak.servers import NAME
from bench.soak.tally import Answer, Tally
from openrl.protocol.codec import encode_forward_backward
from openrl.protocol.datum import Datum, ForwardBackwardInput

POST_TIMEOUT_S = 60.0
HEARTBEAT_S = 10.0
ERROR_PAUSE_S = 1.0
MAX_BACKOFF_S = 30.0
JSON = b"application/json"
PROTOBUF = b"application/x-protobuf"


@dataclass(frozen=True, slots=True)
class Plan:
    """What every tenant does; all do the same."""

    num_runs: int = 4
    num_in_flight: int = 40
    rank: int = 4
    num_datums: int = 2
    datum_tokens: int = 8
    prompt_tokens: int = 8
    max_tokens: int = 8
    num_words: int = 512  # prompts and datums are made of so many tokens
    vocab_size: int = 512
    steps_per_save: int = 8


@dataclass(slots=True)
class Run:
    """One training run as its client knows it."""

    run_id: str
    poll: KeepAliveClient
    data: tuple[Datum, ...]
    sampler_id: str = ""  # of its latest snapshot
    next_seq: int = 1
    losses: list[float] = field(default_factory=list[float])


class Refused(Exception):
    """An answer that is not the one a client wants; says what it was."""


class Tenant:
    """One client with its session."""

    def __init__(self, number: int, key: str, ports: Sequence[int], plan: Plan, tally: Tally) -> None:
        self.runs: list[Run] = []
        self._number = number
        self._key = key
        self._ports = ports
        self._plan = plan
        self._tally = tally
        self._random = random.Random(number)
        self._submissions: list[tuple[asyncio.Lock, KeepAliveClient]] = []
        self._session_id = ""
        self._base_sampler_id = ""
        self._sample_seqs = count()
        self._save_seqs = count(1)
        self._in_flight: set[str] = set()  # ids of samples
        self._is_stopping = False

    async def open(self) -> None:
        """Session, sampler and runs."""
        self._submissions = [(asyncio.Lock(), await self._connect(port)) for port in self._ports]
        session = await self._submit("create_session", {"tags": [], "sdk_version": "0.38.0"})
        self._session_id = session["session_id"]
        body = {"session_id": self._session_id, "sampling_session_seq_id": 0, "base_model": NAME}
        self._base_sampler_id = (await self._submit("create_sampling_session", body))["sampling_session_id"]
        self.runs = list(await asyncio.gather(*(self._create_run(i) for i in range(self._plan.num_runs))))

    async def work(self) -> None:
        """Train and sample until `stop`, then until everything has its answer."""
        async with asyncio.TaskGroup() as group:
            beating = group.create_task(self._beat())
            async with asyncio.TaskGroup() as work:
                for run in self.runs:
                    work.create_task(self._train(run))
                for slot in range(self._plan.num_in_flight):
                    work.create_task(self._sample(slot))
            beating.cancel()

    async def stop(self) -> None:
        """Begin nothing more, and cancel the samples in flight, as a client does that goes."""
        self._is_stopping = True
        await asyncio.gather(*(self._submit("cancel_future", {"request_id": each}) for each in self._in_flight))

    def describe_open(self) -> str:
        """What has no answer."""
        return f"tenant {self._number}: {len(self._in_flight)} samples in flight"

    async def _connect(self, port: int) -> KeepAliveClient:
        return await KeepAliveClient.connect("127.0.0.1", port, self._key)

    async def _poll_connection(self) -> KeepAliveClient:
        return await self._connect(self._random.choice(self._ports))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            try:
                await self._submit("session_heartbeat", {"session_id": self._session_id})
            except Refused as error:
                self._tally.fail(str(error))

    async def _create_run(self, number: int) -> Run:
        lora = {"rank": self._plan.rank, "seed": number, "train_unembed": False}
        body = {"session_id": self._session_id, "model_seq_id": number, "base_model": NAME, "lora_config": lora}
        poll = await self._poll_connection()
        answer = await self._submit("create_model", body)
        await self._result(poll, "create_model", answer["request_id"])
        return Run(answer["model_id"], poll, self._datums())

    def _datums(self) -> tuple[Datum, ...]:
        plan = self._plan
        generator = np.random.default_rng(self._random.getrandbits(32))
        texts = generator.integers(1, plan.num_words, (plan.num_datums, plan.datum_tokens + 1))
        weights = np.ones(plan.datum_tokens, np.float32)
        return tuple(
            Datum(text[:-1].astype(np.int32), {"target_tokens": text[1:].astype(np.int64), "weights": weights})
            for text in texts
        )

    async def _train(self, run: Run) -> None:
        """Ends at the first error: nobody knows then what the run has done."""
        try:
            while not self._is_stopping:
                await self._step(run)
                if len(run.losses) % self._plan.steps_per_save == 1:
                    run.sampler_id = await self._save(run)
        except Refused as error:
            self._tally.fail(str(error))

    async def _step(self, run: Run) -> None:
        lengths = [len(datum.tokens) for datum in run.data]
        body = encode_forward_backward(ForwardBackwardInput(run.run_id, run.next_seq, run.data, "cross_entropy", {}))
        result = await self._do(run, "forward_backward", body, PROTOBUF)
        _refuse(gradient_fault(result, lengths), "forward_backward")
        run.losses.append(loss_of(result))
        adam = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-12}
        body = json.dumps({"model_id": run.run_id, "seq_id": run.next_seq, "adam_params": adam}).encode()
        _refuse(json_fault(await self._do(run, "optim_step", body), "metrics"), "optim_step")

    async def _save(self, run: Run) -> str:
        address = {"model_id": run.run_id, "seq_id": run.next_seq}
        body = json.dumps(address | {"sampling_session_seq_id": next(self._save_seqs)}).encode()
        result = await self._do(run, "save_weights_for_sampler", body)
        _refuse(json_fault(result, "sampling_session_id"), "save_weights_for_sampler")
        return json.loads(result)["sampling_session_id"]

    async def _do(self, run: Run, kind: str, body: bytes, content_type: bytes = JSON) -> bytes:
        """One numbered request of a run, to its result."""
        run.next_seq += 1
        answer = await self._submit_body(kind, body, content_type)
        return await self._result(run.poll, kind, json.loads(answer.body)["request_id"])

    async def _sample(self, slot: int) -> None:
        """Of the base model, or of the latest snapshot of one of the runs, by turns."""
        poll = await self._poll_connection()
        for turn in count(slot):
            if self._is_stopping:
                return
            samplers = [self._base_sampler_id, *(run.sampler_id for run in self.runs if run.sampler_id)]
            try:
                await self._sample_once(poll, samplers[turn % len(samplers)])
            except Refused as error:
                self._tally.fail(str(error))
                await asyncio.sleep(ERROR_PAUSE_S)

    async def _sample_once(self, poll: KeepAliveClient, sampler_id: str) -> None:
        plan = self._plan
        tokens = [self._random.randrange(1, plan.num_words) for _ in range(plan.prompt_tokens)]
        body = {
            "num_samples": 1,
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": tokens}]},
            "sampling_params": {"max_tokens": plan.max_tokens, "temperature": 1.0, "top_k": -1, "top_p": 1.0},
            "sampling_session_id": sampler_id,
            "seq_id": next(self._sample_seqs),
            "prompt_logprobs": False,
            "topk_prompt_logprobs": 0,
            "type": "sample",
        }
        request_id = (await self._submit("asample", body))["request_id"]
        self._in_flight.add(request_id)
        try:
            result = await self._result(poll, "sample", request_id)
        finally:
            self._in_flight.discard(request_id)
        if result:
            _refuse(sample_fault(result, 1, plan.max_tokens, plan.vocab_size), "sample")

    async def _submit(self, path: str, content: Mapping[str, object]) -> dict[str, str]:
        return json.loads((await self._submit_body(path, json.dumps(content).encode())).body)

    async def _submit_body(self, path: str, body: bytes, content_type: bytes = JSON) -> Reply:
        """To any gateway; backs off where the server asks for it."""
        backoff_s = 1.0
        while True:
            lock, client = self._random.choice(self._submissions)
            async with lock:
                reply = await _post(client, path, body, content_type)
            if reply.status != 429:
                break
            self._tally.num_throttled += 1
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
        if reply.status != 200:
            raise Refused(f"{path} {reply.status}: {reply.body[:80]!r}")
        return reply

    async def _result(self, poll: KeepAliveClient, kind: str, request_id: str) -> bytes:
        """Polls until the result is there; nothing for a sample that was cancelled at the end."""
        body = json.dumps({"request_id": request_id, "allow_metadata_only": True}).encode()
        polled_at = time.time()
        while (reply := await _post(poll, "retrieve_future", body)).status == 408:
            self._tally.num_polls += 1
        received_at = time.time()
        if reply.status != 200:
            raise Refused(f"retrieve_future of {kind} {reply.status}: {reply.body[:80]!r}")
        if reply.body.startswith(b'{"error"'):
            if self._is_stopping and kind == "sample" and b"cancelled" in reply.body:
                return b""
            raise Refused(f"{kind} failed: {reply.body[:100]!r}")
        self._tally.answers.append(Answer(self._number, kind, request_id, polled_at, received_at))
        return reply.body


async def _post(client: KeepAliveClient, path: str, body: bytes, content_type: bytes = JSON) -> Reply:
    try:
        async with asyncio.timeout(POST_TIMEOUT_S):
            return await client.post(f"/api/v1/{path}", body, content_type)
    except (OSError, EOFError, TimeoutError) as error:
        raise Refused(f"{path}: {type(error).__name__}") from error


def _refuse(fault: str, kind: str) -> None:
    if fault:
        raise Refused(f"{kind}: {fault}")
