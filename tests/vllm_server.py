"""A test double of vLLM 0.26's server with runtime LoRA: its HTTP endpoints, real tokens, faults on demand.

Run by hand: python -m tests.vllm_server MODEL_DIR [PORT].
"""

import asyncio
import contextlib
import json
import socket
import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import Generator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tests.vllm_model import Continuation, Place, PlainModel

BASE_NAME = "served-base"


class VllmServer:
    """Listens from construction to `stop`. The fields below `faults` may be set at any time."""

    def __init__(self, model: PlainModel, port: int = 0, key: str = "", **flags: Any) -> None:
        """`flags`: those of the command line that matter here: logprobs_mode, max_logprobs, max_cpu_loras."""
        self._model = model
        self._key = key
        self._raw = flags.get("logprobs_mode") == "raw_logprobs"
        self._max_logprobs = int(flags.get("max_logprobs", 20))
        self._max_cpu_loras = int(flags.get("max_cpu_loras", 64))
        self._cached: OrderedDict[str, None] = OrderedDict()  # what the engine has of the adapters
        self._computing = threading.Lock()
        self.adapters: dict[str, str] = {}  # path by name
        self.completions: list[dict[str, Any]] = []  # bodies that were taken
        self.loads: Counter[str] = Counter()
        self.unloads: list[str] = []
        self.num_active = self.max_active = self.num_abandoned = 0
        # faults
        self.status: int | None = None  # of every answer, in place of what it would be
        self.completion_status: int | None = None
        self.load_status: int | None = None  # of every answer to the loading of an adapter
        self.num_to_break_off = 0  # answers that end in the middle
        self.may_answer = threading.Event()  # completions wait for it
        self.may_answer.set()
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        routes = [
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._models),
            Route("/v1/load_lora_adapter", self._load, methods=["POST"]),
            Route("/v1/unload_lora_adapter", self._unload, methods=["POST"]),
            Route("/v1/completions", self._complete, methods=["POST"]),
        ]
        self._app = Starlette(routes=routes)
        config = uvicorn.Config(
            self._serve, log_config=None, ws="none", lifespan="off", interface="asgi3", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))
        self._thread.start()

    def stop(self) -> None:
        """Open connections break."""
        self.may_answer.set()
        self._server.force_exit = True
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def evict(self, name: str) -> None:
        """Forget an adapter without having been told to."""
        del self.adapters[name]
        self._cached.pop(name, None)
        self._model.unload_adapter(self._private(name))

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        if self.status is not None:
            await _error(self.status, "ServiceUnavailable", "told to")(scope, receive, send)
        elif self._key and request.headers.get("authorization") != f"Bearer {self._key}" and scope["path"] != "/health":
            await _error(401, "Unauthorized", "Unauthorized")(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _health(self, _: Request) -> Response:
        return Response()

    async def _metrics(self, _: Request) -> Response:
        return PlainTextResponse(
            "# TYPE vllm:kv_cache_usage_perc gauge\n"
            f'vllm:kv_cache_usage_perc{{engine="0",model_name="{BASE_NAME}"}} 0.25\n'
            "# TYPE vllm:cache_config_info gauge\n"
            'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="400"} 1.0\n'
        )

    async def _models(self, _: Request) -> Response:
        base = {"id": BASE_NAME, "object": "model", "root": "/models/base", "parent": None}
        cards: list[dict[str, Any]] = [{**base, "max_model_len": self._model.max_model_len}]
        cards += [
            {"id": name, "object": "model", "root": path, "parent": BASE_NAME} for name, path in self.adapters.items()
        ]
        return JSONResponse({"object": "list", "data": cards})

    async def _load(self, request: Request) -> Response:
        body = await request.json()
        name, path = body["lora_name"], body["lora_path"]
        self.loads[name] += 1
        if self.load_status is not None:
            return _error(self.load_status, "BadRequestError", "told to")
        if name in self.adapters:
            return _error(400, "InvalidUserInput", f"The lora adapter '{name}' has already been loaded.")
        if not (Path(path) / "adapter_config.json").is_file():
            return _error(404, "NotFoundError", f"Loading lora {name} failed: No adapter found for {path}")
        await asyncio.to_thread(self._model.load_adapter, self._private(name), path)
        self.adapters[name] = path
        self._touch(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        if name not in self.adapters:
            return _error(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        if name not in self._cached:
            return _error(500, "InternalServerError", f"Failed to remove lora adapter '{name}' from the engine.")
        self.unloads.append(name)
        self.evict(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        if self.completion_status is not None:
            return _error(self.completion_status, "InternalServerError", "told to")
        if body["model"] != BASE_NAME and body["model"] not in self.adapters:
            return _error(404, "NotFoundError", f"The model `{body['model']}` does not exist.")
        if body["model"] in self.adapters:
            self._touch(body["model"])
        for name in ("logprobs", "prompt_logprobs"):
            if (body[name] or 0) > self._max_logprobs:
                message = f"Requested {name} of {body[name]}, which is greater than max allowed: {self._max_logprobs}"
                return _error(400, "BadRequestError", message)
        if body["allowed_token_ids"] is None:  # not a probe
            self.completions.append(body)
        with self._counted():
            return await self._answer(request, body)

    async def _answer(self, request: Request, body: dict[str, Any]) -> Response:
        computing = asyncio.create_task(asyncio.to_thread(self._compute, body))
        leaving = asyncio.create_task(_left(request))
        await asyncio.wait((computing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            self.num_abandoned += 1
            return Response()
        leaving.cancel()
        reply = JSONResponse(await computing)
        if body["allowed_token_ids"] is None and self.num_to_break_off:
            self.num_to_break_off -= 1
            return _BrokenOff(reply)
        return reply

    @contextlib.contextmanager
    def _counted(self) -> Generator[None]:
        self.num_active += 1
        self.max_active = max(self.max_active, self.num_active)
        try:
            yield
        finally:
            self.num_active -= 1

    def _compute(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["allowed_token_ids"] is None:
            self.may_answer.wait()
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        name = None if body["model"] == BASE_NAME else self._private(body["model"])
        choices: list[dict[str, Any]] = []
        with self._computing:
            for prompt in prompts:
                scores = None
                if body["prompt_logprobs"] is not None:
                    scores = [
                        place and _scored(place, body["prompt_logprobs"]) for place in self._model.score(name, prompt)
                    ]
                for index in range(body["n"]):
                    said = self._model.continuation(name, prompt, body, body["seed"] + index, self._raw)
                    choices.append({**_choice(said, len(choices), body["logprobs"]), "prompt_logprobs": scores})
        generated = sum(len(choice["token_ids"]) for choice in choices)
        usage = {"prompt_tokens": sum(map(len, prompts)), "completion_tokens": generated, "prompt_tokens_details": None}
        return {"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": choices, "usage": usage}

    def _touch(self, name: str) -> None:
        """Used: the engine reads its files again if it has put it out."""
        assert (Path(self.adapters[name]) / "adapter_config.json").is_file(), "the engine would die here"
        self._cached[name] = None
        self._cached.move_to_end(name)
        while len(self._cached) > self._max_cpu_loras:
            self._cached.popitem(last=False)

    def _private(self, name: str) -> str:
        return f"{self.port} {name}"  # servers of a test share the model


def _choice(said: Continuation, index: int, k: int) -> dict[str, Any]:
    listed = [place.listed(k) for place in said.places]
    logprobs = {
        "text_offset": [0] * len(listed),
        "tokens": [f"token_id:{place.token}" for place in said.places],
        "token_logprobs": [max(place[0][1], -9999.0) for place in listed],
        "top_logprobs": [{f"token_id:{i}": max(value, -9999.0) for i, value, _ in place[: k + 1]} for place in listed],
    }
    return {
        "index": index,
        "text": "",
        "logprobs": logprobs,
        "finish_reason": said.finish_reason,
        "stop_reason": said.stop_reason,
        "token_ids": [place.token for place in said.places],
    }


def _scored(place: Place, k: int) -> dict[str, Any]:
    return {
        str(i): {"logprob": max(value, -9999.0), "rank": rank, "decoded_token": None}
        for i, value, rank in place.listed(k)
    }


def _error(status: int, kind: str, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)


async def _left(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _BrokenOff(Response):
    """Half of another answer; then the connection closes."""

    def __init__(self, whole: JSONResponse) -> None:
        super().__init__()
        self._whole = bytes(whole.body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", str(len(self._whole)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self._whole[: len(self._whole) // 2], "more_body": True})


def main() -> None:
    server = VllmServer(PlainModel(Path(sys.argv[1])), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(json.dumps({"url": server.url}), flush=True)
    server._thread.join()


if __name__ == "__main__":
    main()
