"""One vLLM server of a pool: whether it may be used, which adapters it has, and single jobs through it."""

import asyncio
import contextlib
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from openrl.errors import OpenRLError, RequestFailed
from openrl.protocol.results import SampleResult
from openrl.sampling.base import SampleJob
from openrl.sampling.vllm_adapters import AdapterDirectory
from openrl.sampling.vllm_client import (
    CompletionReply,
    CompletionRequest,
    Occupancy,
    ServedModel,
    ServerAway,
    ServerBroke,
    ServerRefused,
    UnknownModel,
    VllmClient,
)
from openrl.sampling.vllm_mapping import ModelFacts, fault_of_probe, plan_of, probe_of, rescoring_of, result_of
from openrl.sampling.vllm_meter import ServerMeter
from openrl.telemetry.logs import get_logger

Condition = Literal["away", "unfit", "well"]
_COMPLETE_ATTEMPTS = 3
_UNLOAD_ATTEMPTS = 2
_MAX_SILENT_CHECKS = 3
_PROBE_TOKENS = (0, 1)
"""A model that is sure of one of them is not sure of the other."""
log = get_logger(__name__)


class _Unfit(OpenRLError):
    """The server works, and not as it must: somebody has to start it otherwise."""


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """What all replicas of a pool share."""

    model: ModelFacts
    adapters: AdapterDirectory
    max_adapters: int  # that a replica has for us at once
    health_s: float  # between two checks


@dataclass(frozen=True, slots=True)
class ReplicaEvents:
    """What a replica tells its pool."""

    on_change: Callable[["Replica"], None]  # its condition is another
    on_lost: Callable[["Replica"], None]  # a check found it away: what it has in hand will not come back
    on_unloaded: Callable[[str], None]  # an adapter


class Replica:
    """Used from the pool's event loop. `condition`: away until it was checked; unfit: it answers, but not as needed."""

    def __init__(self, client: VllmClient, facts: PoolFacts, events: ReplicaEvents) -> None:
        self.name = client.url
        self.condition: Condition = "away"
        self.fault = "it was not reached yet"
        self.is_known = False  # it has said what it has of ours
        self.num_samples = 0  # in hand
        self.occupancy = Occupancy()
        self.meter = ServerMeter()
        self._client = client
        self._facts = facts
        self._events = events
        self._base_name = ""
        self._max_model_len = 0
        self._adapters: OrderedDict[str, None] = OrderedDict()  # loaded for us; the longest unused first
        self._users: Counter[str] = Counter()  # jobs in hand by adapter
        self._loading = asyncio.Lock()
        self._num_silent = 0

    async def watch(self) -> None:
        """Check it for ever."""
        while True:
            await self.check()
            await asyncio.sleep(self._facts.health_s)

    async def check(self) -> None:
        """Find out its condition; one that was not well is examined before it is used."""
        try:
            await self._client.check_health()
            if self.condition != "well":
                await self._examine()
            with contextlib.suppress(UnknownModel, ServerRefused, ServerBroke):  # only figures
                self.occupancy = await self._client.occupancy()
        except (ServerAway, ServerBroke) as error:
            self._num_silent += 1
            has_answered = isinstance(error, ServerBroke) or error.has_answered
            if has_answered or self.condition != "well" or self._num_silent >= _MAX_SILENT_CHECKS:
                self._become("away", str(error))
                self._events.on_lost(self)
        except (UnknownModel, ServerRefused, _Unfit) as error:
            self._become("unfit", str(error))
        else:
            self._num_silent = 0

    def leave_out(self, error: ServerAway) -> None:
        """A request found nobody there: nothing more goes to it until a check found it well."""
        self._become("away", str(error))

    def holds(self, name: str) -> bool:
        """Whether the server may need an adapter's files."""
        return name in self._adapters or name in self._users

    async def sample(self, job: SampleJob) -> SampleResult:
        """Do one job; raises the client's errors and OpenRLError."""
        key = job.sampler.adapter_key
        name = self._base_name if key is None else self._facts.adapters.name_of(key)
        plan = plan_of(job, self._facts.model, name, self._max_model_len)
        self._users[name] += 1
        try:
            reply = await self._complete(plan.request, key)
            rescored = await self._complete(rescoring_of(plan, job, reply), key) if plan.is_rescored else None
        finally:
            self._users[name] -= 1
            if not self._users[name]:
                del self._users[name]
        return result_of(job, self._facts.model, reply, rescored)

    async def _complete(self, request: CompletionRequest, key: str | None) -> CompletionReply:
        """With the adapter loaded before: the server may have been restarted, or told by others to drop it."""
        for _ in range(_COMPLETE_ATTEMPTS):
            if key is not None:
                await self._have_adapter(key, request.model)
            try:
                return await self._client.complete(request)
            except UnknownModel as error:
                if request.model in self._adapters:  # the first of the samples that find it out
                    del self._adapters[request.model]
                    log.info("a vLLM server lost an adapter", server=self.name, adapter=request.model, error=str(error))
        raise ServerBroke(f"{self.name} does not keep model {request.model!r}")

    async def _have_adapter(self, key: str, name: str) -> None:
        if name in self._adapters:
            self._adapters.move_to_end(name)
            return
        path = await self._facts.adapters.have(key)
        async with self._loading:
            if name not in self._adapters:
                await self._make_room()
                await self._load(name, str(path))
                self._adapters[name] = None

    async def _load(self, name: str, path: str) -> None:
        try:
            await self._client.load_adapter(name, path)
        except (UnknownModel, ServerRefused, ServerBroke) as error:
            if any(model.id == name for model in await self._client.models()):
                return  # it had it
            advice = "it needs --enable-lora, VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --max-lora-rank, and the directory"
            message = f"the vLLM server cannot load the snapshot ({error}); {advice}"
            if isinstance(error, ServerBroke):
                raise ServerBroke(message) from error
            raise RequestFailed(message, "server") from error

    async def _make_room(self) -> None:
        """Unload what was not used for longest and is not in use; more than the bound where all are."""
        idle = [name for name in self._adapters if name not in self._users]
        for name in idle[: max(len(self._adapters) + 1 - self._facts.max_adapters, 0)]:
            if await self._unload(name):
                self._adapters.pop(name, None)
                self._events.on_unloaded(name)

    async def _unload(self, name: str) -> bool:
        """Whether the server has forgotten it.

        One that the engine has put out of its own cache cannot be unloaded before it was used again.
        """
        for attempt in range(_UNLOAD_ATTEMPTS):
            with contextlib.suppress(UnknownModel):
                try:
                    await self._client.unload_adapter(name)
                except ServerBroke:
                    if attempt + 1 < _UNLOAD_ATTEMPTS:
                        await self._client.complete(probe_of(name, 0))
                    continue
            return True
        return False

    async def _examine(self) -> None:
        served = await self._client.models()
        base = next((model for model in served if model.parent is None), None)
        if base is None:
            raise _Unfit("it serves no base model")
        self._adopt(served)
        for token in _PROBE_TOKENS:
            fault = fault_of_probe(token, await self._client.complete(probe_of(base.id, token)))
            if fault is not None:
                raise _Unfit(fault)
        self._base_name = base.id
        self._max_model_len = base.max_model_len or self._facts.model.context_length
        self._become("well", "")

    def _adopt(self, served: list[ServedModel]) -> None:
        """Know what it has of ours, also from before a restart of this process."""
        adapters = self._facts.adapters
        ours = {model.id for model in served if model.root == str(adapters.path_of(model.id))}
        for name in [name for name in self._adapters if name not in ours]:
            del self._adapters[name]
        for name in sorted(ours & set(adapters.names())):
            self._adapters.setdefault(name)
        self.is_known = True

    def _become(self, condition: Condition, fault: str) -> None:
        self.fault = fault
        if condition != self.condition:
            self.condition = condition
            (log.info if condition == "well" else log.warning)(
                "a vLLM server changed", server=self.name, condition=condition, fault=fault
            )
            self._events.on_change(self)
