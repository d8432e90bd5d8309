"""A worker without process and connection: commands in, reports out, real files below."""

import json
import queue
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from openrl.catalog import BaseModelInfo
from openrl.protocol.codec import encode_forward_backward
from openrl.protocol.datum import Datum, ForwardBackwardInput
from openrl.protocol.runs import RunSpec, SamplerSpec
from openrl.rpc.messages import Command, Execute, OpenRun, Report, Sample, Shutdown, WorkItem
from openrl.store.blobs import DirectoryBlobs
from openrl.worker.engines import Engines, EngineTable
from openrl.worker.machine import create_deliverers, create_executor
from openrl.worker.timeshare import TimeShare
from openrl.worker.work_watch import WorkWatch
from tests.worker.fake_engines import BASE_MODEL, FakeSamplingEngine, FakeTrainingEngine

RUN_ID = "s1:train:0"


class Rig:
    """Work is done in `run`, in this thread, once; `restarted` gives the next worker over the same files."""

    def __init__(
        self,
        root: Path | DirectoryBlobs,
        idle_s: float = 20.0,
        attempt: str = "first",
        clock: Callable[[], float] = time.perf_counter,
        watch: WorkWatch | None = None,
    ) -> None:
        self.trace: list[str] = []
        self.blobs = root if isinstance(root, DirectoryBlobs) else DirectoryBlobs(root)
        self.training = FakeTrainingEngine(self.trace)
        self.sampling = FakeSamplingEngine(self.trace)
        self.reports: list[Report] = []
        self.inbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self.deliverers = create_deliverers(self.blobs, self.reports.append, sleep=lambda _: None)
        share = TimeShare(max_training_lag_s=0.0)  # engines that take no time would never be late
        self.executor = create_executor(
            self.engines(),
            self.blobs,
            self.inbox,
            self.deliverers,
            self.reports.append,
            clock,
            wall_clock=lambda: 1000.0,
            new_attempt=lambda: attempt,
            share=share,
            idle_s=idle_s,
            watch=watch,
        )

    def engines(self, max_pass_tokens: int = 512) -> EngineTable:
        info = BaseModelInfo(BASE_MODEL, Path("/models/tiny"), "TinyForCausalLM", 512, 256)
        return {BASE_MODEL: Engines(info, self.training, self.sampling, max_pass_tokens, 32)}

    def restarted(self) -> "Rig":
        return Rig(self.blobs, attempt="second")

    def run(self, *commands: Command) -> list[Report]:
        """Do all of it, then stop; the reports in the order they came."""
        for command in (*commands, Shutdown()):
            self.inbox.put(command)
        self.executor.run()
        self.deliverers.close()
        self.deliverers.saves.run()
        self.deliverers.results.run()
        return self.reports

    def item(self, kind: str, payload: bytes | dict[str, object], seq_id: int = 1, **fields: object) -> WorkItem:
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        [ref] = self.blobs.put_payloads([body])
        values: dict[str, object] = {"request_id": f"{kind}-{seq_id}", "tenant_id": "t1", "run_id": RUN_ID, **fields}
        return WorkItem(kind=kind, payload_ref=ref, seq_id=seq_id, **values)  # pyright: ignore[reportArgumentType]

    def forward_backward(self, seq_id: int = 1, run_id: str = RUN_ID, **options: object) -> WorkItem:
        """`options`: num_datums, length, loss_fn, and fields of WorkItem."""
        num_datums, length = int(str(options.pop("num_datums", 2))), int(str(options.pop("length", 3)))
        datum = Datum(np.arange(length, dtype=np.int32), {"target_tokens": np.arange(length, dtype=np.int64)})
        loss_fn = str(options.pop("loss_fn", "cross_entropy"))
        body = encode_forward_backward(ForwardBackwardInput(run_id, seq_id, (datum,) * num_datums, loss_fn))
        return self.item("forward_backward", body, seq_id, run_id=run_id, **options)

    def optim_step(self, seq_id: int, run_id: str = RUN_ID, rate: float = 0.5, **fields: object) -> WorkItem:
        payload: dict[str, object] = {"model_id": run_id, "seq_id": seq_id, "adam_params": {"learning_rate": rate}}
        return self.item("optim_step", payload, seq_id, run_id=run_id, **fields)

    def sample(self, name: str, prompt: list[int], max_tokens: int = 4, adapter_key: str | None = None) -> Sample:
        payload: dict[str, object] = {
            "sampling_session_id": "s1:sample:0",
            "seq_id": 1,
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": prompt}]},
            "sampling_params": {"max_tokens": max_tokens},
            "num_samples": 2,
        }
        sampler = SamplerSpec("s1:sample:0", BASE_MODEL, adapter_key)
        return Sample(self.item("sample", payload, request_id=name, run_id="", sampler=sampler))

    def result(self, ref: str) -> dict[str, object]:
        return json.loads(self.blobs.get_payload(ref))


def run_spec(run_id: str = RUN_ID, rank: int = 4) -> RunSpec:
    return RunSpec(run_id, "t1", BASE_MODEL, rank, 5, True, True, False)


def open_run(run_id: str = RUN_ID, rank: int = 4) -> OpenRun:
    return OpenRun(run_spec(run_id, rank), None, -1)


def execute(*items: WorkItem, work_id: int = 1) -> Execute:
    return Execute(work_id, items[0].kind, items)  # pyright: ignore[reportArgumentType]
