"""Speaks HTTP with one vLLM server: requests and replies as typed values, failures as four errors.

Fields are those of vLLM 0.26's OpenAI-compatible server; docs/vllm.md tells how it must be started.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from openrl.errors import InvalidRequest, NotFound, OpenRLError, Unavailable

T = TypeVar("T")
MESSAGE_CHARACTERS = 300
_AWAY = (429, 502, 503, 504)
_SHORT_S = 10.0


class ServerAway(Unavailable):
    """Nobody answers there, the answer broke off, or it was "not now": the same request may go elsewhere."""

    has_answered = False
    """Whether the server itself said so."""


class UnknownModel(NotFound):
    """The server has no adapter of that name (any more)."""


class ServerRefused(InvalidRequest):
    """The server says that the request is wrong."""


class ServerBroke(OpenRLError):
    """The server failed at this request, or its answer makes no sense."""


class CompletionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of /v1/completions. Every field is always sent: the server has defaults of its own."""

    model: str
    prompt: list[int] | list[list[int]]
    n: int = 1
    max_tokens: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    stop: list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = True  # ours are among stop_token_ids; the server's list may be another
    skip_special_tokens: bool = False  # stop strings may be the text of special tokens
    logprobs: int = 0  # likeliest tokens beside the chosen one
    return_token_ids: bool = True
    return_tokens_as_token_ids: bool = True
    prompt_logprobs: int | None = None  # likeliest tokens beside the prompt's own; None: no scores
    allowed_token_ids: list[int] | None = None
    cache_salt: str | None = None


class Scored(msgspec.Struct, frozen=True):
    """A token at one place of a prompt; the likeliest has rank 1."""

    logprob: float
    rank: int | None = None


class ChosenLogprobs(msgspec.Struct, frozen=True):
    """Of the generated tokens, in order; names of tokens are "token_id:7"."""

    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] = []


class Choice(msgspec.Struct, frozen=True):
    """One continuation."""

    index: int
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    logprobs: ChosenLogprobs | None = None
    prompt_logprobs: list[dict[str, Scored] | None] | None = None


class CachedTokens(msgspec.Struct, frozen=True):
    """Of a prompt; only where the server runs with --enable-prompt-tokens-details."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True):
    """What a completion took."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: CachedTokens | None = None


class CompletionReply(msgspec.Struct, frozen=True):
    """Answer of /v1/completions."""

    choices: list[Choice]
    usage: Usage = Usage()


class ServedModel(msgspec.Struct, frozen=True):
    """A line of /v1/models: a base model, or an adapter, which has a parent."""

    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class _ModelList(msgspec.Struct, frozen=True):
    data: list[ServedModel]


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What /metrics says of the server's cache."""

    cache_used: float = 0.0  # 0 to 1
    num_blocks: int = 0


class VllmClient:
    """One server. Everything raises ServerAway, UnknownModel, ServerRefused or ServerBroke, nothing else."""

    def __init__(self, url: str, http: httpx.AsyncClient, timeout_s: float, headers: Mapping[str, str]) -> None:
        """`timeout_s`: for a completion and for loading an adapter."""
        self.url = url.rstrip("/")
        self._http = http
        self._timeout_s = timeout_s
        self._headers = dict(headers)

    async def check_health(self) -> None:
        """Returns where the engine lives."""
        await self._get("/health")

    async def models(self) -> list[ServedModel]:
        """Base models first, then adapters."""
        return _decoded(await self._get("/v1/models"), _ModelList).data

    async def load_adapter(self, name: str, path: str) -> None:
        """Have the PEFT directory at `path` (as the server sees it) served under a name."""
        await self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter."""
        await self._post("/v1/unload_lora_adapter", {"lora_name": name})

    async def complete(self, request: CompletionRequest) -> CompletionReply:
        """All continuations at once; when the caller is cancelled the connection closes, and the server drops them."""
        return _decoded(await self._post("/v1/completions", request), CompletionReply)

    async def occupancy(self) -> Occupancy:
        """Of the KV cache; zero where the server does not tell."""
        return read_occupancy((await self._get("/metrics")).text)

    async def _get(self, path: str) -> httpx.Response:
        return await self._send(httpx.Request("GET", self.url + path), _SHORT_S)

    async def _post(self, path: str, body: CompletionRequest | Mapping[str, str]) -> httpx.Response:
        headers = {"Content-Type": "application/json"}
        request = httpx.Request("POST", self.url + path, headers=headers, content=msgspec.json.encode(body))
        return await self._send(request, self._timeout_s)

    async def _send(self, request: httpx.Request, read_s: float) -> httpx.Response:
        request.headers.update(self._headers)
        request.extensions["timeout"] = {"connect": _SHORT_S, "write": _SHORT_S, "read": read_s, "pool": None}
        path = request.url.path
        try:
            reply = await self._http.send(request)
        except httpx.HTTPError as error:
            if isinstance(error, httpx.ReadTimeout) and request.method == "POST":  # elsewhere it would take as long
                raise ServerBroke(f"{path} took longer than {read_s:.0f} s") from error
            raise ServerAway(f"{self.url}{path}: {type(error).__name__}") from error
        if reply.status_code in _AWAY:
            away = ServerAway(f"{self.url}{path}: status {reply.status_code}")
            away.has_answered = True
            raise away
        if reply.status_code == 404:
            raise UnknownModel(_message(reply))
        if 400 <= reply.status_code < 500:
            raise ServerRefused(_message(reply))
        if reply.status_code != 200:
            raise ServerBroke(_message(reply))
        return reply


def read_occupancy(text: str) -> Occupancy:
    """The two figures in a page of metrics; engines of one server are added up."""
    used: list[float] = []
    num_blocks = 0
    try:
        families = list(text_string_to_metric_families(text))
    except ValueError as error:
        raise ServerBroke(f"/metrics: the answer makes no sense: {error}") from error
    for family in families:
        for sample in family.samples:
            if sample.name == "vllm:kv_cache_usage_perc":
                used.append(sample.value)
            elif sample.name == "vllm:cache_config_info" and sample.labels.get("num_gpu_blocks", "").isdigit():
                num_blocks += int(sample.labels["num_gpu_blocks"])
    return Occupancy(sum(used) / len(used) if used else 0.0, num_blocks)


def _decoded(reply: httpx.Response, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(reply.content, type=kind)
    except msgspec.DecodeError as error:
        raise ServerBroke(f"{reply.url.path}: the answer makes no sense: {error}") from error


class _ErrorBody(msgspec.Struct, frozen=True):
    message: str = ""


class _ErrorReply(msgspec.Struct, frozen=True):
    error: _ErrorBody = _ErrorBody()


def _message(reply: httpx.Response) -> str:
    """What the server says; some of its errors are plain text."""
    try:
        text = msgspec.json.decode(reply.content, type=_ErrorReply).error.message
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = ""
    text = text or reply.content.decode(errors="replace")
    return f"{reply.status_code}: {text[:MESSAGE_CHARACTERS]}"
