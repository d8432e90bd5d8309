"""The checks of `bench.vllm_pool`: each returns figures, and raises where something does not hold."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, cast

import httpx
import msgspec
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from bench.sample import prompts_of
from bench.vllm_scene import NUM_ADAPTERS, Scene
from openrl.errors import RequestFailed
from openrl.protocol.results import SampleResult
from openrl.sampling.base import SampleJob
from openrl.sampling.vllm_client import CompletionRequest

MEAN_NATS = 2e-2
"""Contract 20 between two bf16 engines."""
TIE_NATS = 0.1
"""Two greedy engines may part where the likeliest tokens are this near."""


class Checks:
    """Over one scene."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._long = 48 if scene.tiny else 128
        self._new = 8 if scene.tiny else 64

    def greedy(self) -> dict[str, Any]:
        """Tokens of base model and adapters are the built-in engine's but for ties; log-probabilities are near."""
        keys = [None, "0", "1", "2", "3"]
        prompts = self._prompts(20, seed=1)
        fields: dict[str, Any] = {"temperature": 0.0, "max_tokens": self._new, "topk_sample_logprobs": 5}
        jobs = [self._scene.job(prompt, keys[i % len(keys)], **fields) for i, prompt in enumerate(prompts)]
        theirs, ours = self._scene.results(*jobs), self._scene.ours(*jobs)
        num_equal = num_whole = num_tokens = 0
        distances: list[float] = []
        gaps: list[float] = []
        for one, other in zip(theirs, ours, strict=True):
            got, expected = one.sequences[0], other.sequences[0]
            same = np.asarray(got.tokens == expected.tokens)
            until = int(np.argmin(same)) if not same.all() else len(same)
            distances += np.abs(got.logprobs[:until] - expected.logprobs[:until]).tolist()
            num_equal, num_tokens, num_whole = (
                num_equal + until,
                num_tokens + len(same),
                num_whole + (until == len(same)),
            )
            if until < len(same):
                gaps.append(_gap(expected.topk_logprobs, until, int(got.tokens[until])))
        base, adapted = ours[0].sequences[0].tokens.tolist(), ours[1].sequences[0].tokens.tolist()
        found: dict[str, Any] = {
            "sequences_equal": f"{num_whole} of {len(jobs)}", "tokens_before_parting": f"{num_equal} of {num_tokens}",
            "largest_gap_where_they_part": max(gaps, default=0.0), **_distance(distances),
        }  # fmt: skip
        assert max(gaps, default=0.0) <= TIE_NATS, f"they part where it was no tie: {found}"
        assert found["mean_abs"] <= MEAN_NATS, found
        assert base != adapted, "adapters change nothing"
        return found

    def tempered(self) -> dict[str, Any]:
        """Sampled log-probabilities are of the tempered distribution."""
        result: dict[str, Any] = {}
        for temperature in (0.7, 1.0, 1.6):
            prompts = self._prompts(8, seed=2)
            jobs = [self._scene.job(prompt, temperature=temperature, max_tokens=self._new) for prompt in prompts]
            result[str(temperature)] = self._near_plain(prompts, self._scene.results(*jobs), temperature)
        return result

    def cut(self) -> dict[str, Any]:
        """With cuts and penalties they are of the model at temperature 1, before those."""
        prompts = self._prompts(4, seed=3)
        ways: dict[str, dict[str, Any]] = {
            "top_p": {"top_p": 0.5},
            "top_k": {"top_k": 5},
            "penalty": {"presence_penalty": 1.5},
        }
        result: dict[str, Any] = {}
        for name, options in ways.items():
            jobs = [self._scene.job(prompt, max_tokens=self._new, num_samples=2, **options) for prompt in prompts]
            result[name] = self._near_plain(prompts, self._scene.results(*jobs), 1.0)
        [failed] = self._scene.theirs(self._scene.job(prompts[0], temperature=0.7, top_p=0.9))
        assert isinstance(failed.result, RequestFailed), "temperature 0.7 with top_p must be refused"
        return result

    def prompt(self) -> dict[str, Any]:
        """Prompt log-probabilities and the likeliest tokens beside them are the built-in engine's."""
        prompts = self._prompts(6, seed=4)
        fields: dict[str, Any] = {"wants_prompt_logprobs": True, "topk_prompt_logprobs": 3, "max_tokens": 1}
        jobs = [self._scene.job(prompt, "0" if i % 2 else None, **fields) for i, prompt in enumerate(prompts)]
        distances: list[float] = []
        for one, other in zip(self._scene.results(*jobs), self._scene.ours(*jobs), strict=True):
            assert one.prompt_logprobs is not None
            assert other.prompt_logprobs is not None
            assert np.isnan(one.prompt_logprobs[0])
            assert one.topk_prompt_logprobs is not None
            assert other.topk_prompt_logprobs is not None
            distances += np.abs(one.prompt_logprobs[1:] - other.prompt_logprobs[1:]).tolist()
            distances += (
                np.abs(one.topk_prompt_logprobs.logprobs - other.topk_prompt_logprobs.logprobs)[1:].ravel().tolist()
            )
        return _within(distances)

    def seeds(self) -> dict[str, Any]:
        """A seed gives the same again; samples differ; the first ones do not depend on how many follow."""
        [prompt] = self._prompts(1, seed=5)

        def tokens(num_samples: int, seed: int) -> SampleJob:
            return self._scene.job(prompt, num_samples=num_samples, seed=seed, max_tokens=16)

        [alone] = self._scene.results(tokens(4, 7))
        again, fewer, other = self._scene.results(tokens(4, 7), tokens(2, 7), tokens(4, 8))
        first, second = _said(alone), _said(again)
        assert len({*map(tuple, first)}) == 4, "samples do not differ"
        assert not {*map(tuple, first)} & {*map(tuple, _said(other))}, "another seed gives the same"
        prefix = sum(a == b for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True))
        assert first[0][0] == second[0][0], "the same seed starts otherwise"
        assert [each[0] for each in _said(fewer)] == [each[0] for each in first[:2]]
        return {"tokens_equal_again": f"{prefix} of 64", "all_equal": first == second}

    def stops(self) -> dict[str, Any]:
        """A stop string that spans tokens and a stop token end a sample where they should; they are in the output."""
        [prompt] = self._prompts(1, seed=6)
        asked: dict[str, Any] = {"max_tokens": 12, "seed": 3}
        [free] = self._scene.results(self._scene.job(prompt, **asked))
        said = free.sequences[0].tokens.tolist()
        place = next(i for i in range(2, 11) if said[i] not in said[:i])
        text = f"w{said[place - 1]}.w{said[place]}."
        ways: dict[str, dict[str, Any]] = {
            "string": {"stop_strings": (text,)},
            "token": {"stop_token_ids": (said[place],)},
        }
        for name, options in ways.items():
            [result] = self._scene.results(self._scene.job(prompt, **asked, **options))
            [sequence] = result.sequences
            assert sequence.tokens.tolist() == said[: place + 1], f"{name}: {sequence.tokens.tolist()} of {said}"
            assert sequence.stop_reason == "stop"
        assert free.sequences[0].stop_reason == "length"
        return {"stopped_after": place + 1}

    def adapter_loading(self) -> dict[str, Any]:
        """Seconds from a job of a new adapter to its first token, and of loading alone."""
        [prompt] = self._prompts(1, seed=7)
        self._scene.results(self._scene.job(prompt, "0", max_tokens=1))

        def seconds(key: str) -> float:
            began = time.perf_counter()
            self._scene.results(self._scene.job(prompt, key, max_tokens=1))
            return time.perf_counter() - began

        warm = [seconds("0") for _ in range(5)]
        new = [seconds(key) for key in ("5", "6", "7")]
        return {
            "warm_ms": _ms(warm), "new_adapter_ms": _ms(new),
            "bytes": sum(file.stat().st_size for file in next(self._scene.served.glob("openrl-*")).iterdir()),
        }  # fmt: skip

    def lost_adapter(self) -> dict[str, Any]:
        """A server that was told by others to drop everything: jobs go on."""
        [prompt] = self._prompts(1, seed=8)
        job: dict[str, Any] = {"temperature": 0.0, "max_tokens": 4}
        before = self._scene.results(*(self._scene.job(prompt, key, **job) for key in "01"))
        served = httpx.get(f"{self._scene.url}/v1/models").json()["data"]
        names = [model["id"] for model in served if model["parent"] is not None]
        for name in names:
            reply = httpx.post(f"{self._scene.url}/v1/unload_lora_adapter", json={"lora_name": name}, timeout=60.0)
            assert reply.status_code == 200, f"unload: {reply.status_code} {reply.text[:300]}"
        after = self._scene.results(*(self._scene.job(prompt, key, **job) for key in "01"))
        assert [_said(each) for each in after] == [_said(each) for each in before]
        return {"unloaded": len(names)}

    def too_large_rank(self) -> dict[str, Any]:
        """An adapter beyond --max-lora-rank fails its own job, and the server lives on."""
        [prompt] = self._prompts(1, seed=9)
        if self._scene.tiny:
            return {"skipped": "the double takes any rank"}
        failed, fine = self._scene.theirs(self._scene.job(prompt, "wide"), self._scene.job(prompt, "0"))
        assert isinstance(failed.result, RequestFailed)
        assert isinstance(fine.result, SampleResult)
        return {"says": str(failed.result)[:300]}

    def cancelling(self) -> dict[str, Any]:
        """A cancelled job's sequence leaves the server."""
        [prompt] = self._prompts(1, seed=10)
        if self._scene.tiny:
            return {"skipped": "the double has no such figure"}
        job = self._scene.job(prompt, max_tokens=3000, num_samples=8)
        self._scene.pool.add(job)
        self._wait_running(8)
        self._scene.pool.cancel(job.request_id)
        began = time.perf_counter()
        self._wait_running(0)
        return {"gone_after_ms": round(1e3 * (time.perf_counter() - began))}

    def speed(self) -> dict[str, Any]:
        """Tokens a second through us and of the same requests by plain HTTP; base model and 8 adapters, in turn."""
        num, new = (4, 4) if self._scene.tiny else (256, 128)
        found: dict[str, Any] = {}
        for name, keys in {"base": [None], "adapters": [str(i) for i in range(NUM_ADAPTERS)]}.items():
            prompts = prompts_of(self._scene.model.vocab_size, [self._long * 2] * num, 11)
            self._through_us(prompts, keys, 2)
            turns = range(1 if self._scene.tiny else 2)
            pairs = [(self._through_us(prompts, keys, new), self._alone(prompts, keys, new)) for _ in turns]
            ours, alone = max(pair[0] for pair in pairs), max(pair[1] for pair in pairs)
            found[name] = {"through_us": round(ours), "vllm_alone": round(alone), "ratio": round(ours / alone, 3)}
        return found

    def _through_us(self, prompts: Sequence[Any], keys: Sequence[str | None], new: int) -> float:
        jobs = [
            self._scene.job(prompt, keys[i % len(keys)], max_tokens=new, seed=i) for i, prompt in enumerate(prompts)
        ]
        began = time.perf_counter()
        results = self._scene.results(*jobs)
        return sum(len(each.sequences[0].tokens) for each in results) / (time.perf_counter() - began)

    def _alone(self, prompts: Sequence[Any], keys: Sequence[str | None], new: int) -> float:
        """Without log-probabilities, as others would ask."""
        served = httpx.get(f"{self._scene.url}/v1/models").json()["data"]
        base = next(model["id"] for model in served if model["parent"] is None)
        adapters = [model["id"] for model in served if model["parent"] is not None][: len(keys)]
        names = [base] if keys == [None] else adapters
        bodies: list[dict[str, Any]] = []
        for i, prompt in enumerate(prompts):
            plain = CompletionRequest(
                model=names[i % len(names)], prompt=prompt.tolist(), max_tokens=new, temperature=1.0, seed=i
            )
            body = msgspec.to_builtins(plain)
            if not self._scene.tiny:  # the double wants every field
                for name in ("logprobs", "return_token_ids", "return_tokens_as_token_ids"):
                    del body[name]
            bodies.append(body)

        async def ask_all() -> None:
            async with httpx.AsyncClient(timeout=300.0, limits=httpx.Limits(max_connections=None)) as http:
                url = f"{self._scene.url}/v1/completions"
                for reply in await asyncio.gather(*(http.post(url, json=body) for body in bodies)):
                    assert reply.status_code == 200, f"{reply.status_code} {reply.text[:300]}"
                    assert reply.json()["usage"]["completion_tokens"] == new

        began = time.perf_counter()
        asyncio.run(ask_all())
        return len(prompts) * new / (time.perf_counter() - began)

    def _near_plain(
        self, prompts: Sequence[Any], results: Sequence[SampleResult], temperature: float
    ) -> dict[str, Any]:
        """Against plain transformers over the same files."""
        device = self._scene.model.device
        loaded = AutoModelForCausalLM.from_pretrained(self._scene.model.path, dtype=self._scene.model.dtype)
        plain = cast(Any, loaded).to(device)
        distances: list[float] = []
        for prompt, result in zip(prompts, results, strict=True):
            for sequence in result.sequences:
                tokens = [*prompt.tolist(), *sequence.tokens.tolist()]
                with torch.no_grad():
                    logits = plain(torch.tensor([tokens], device=device)).logits[0, len(prompt) - 1 : -1].float()
                said = torch.tensor(sequence.tokens.tolist(), device=device)[:, None]
                expected = torch.log_softmax(logits / temperature, -1).gather(1, said)[:, 0].cpu().numpy()
                distances += np.abs(expected - sequence.logprobs).tolist()
        return _within(distances)

    def _prompts(self, num: int, seed: int) -> list[Any]:
        return list(prompts_of(self._scene.model.vocab_size, [self._long] * num, seed))

    def _wait_running(self, num: int) -> None:
        deadline = time.monotonic() + 30.0
        while _running(self._scene.url) != num:
            assert time.monotonic() < deadline, f"{_running(self._scene.url)} sequences run after 30 s, not {num}"
            time.sleep(0.02)


def _running(url: str) -> float:
    text = httpx.get(f"{url}/metrics", timeout=30.0).text
    lines = [line for line in text.splitlines() if line.startswith("vllm:num_requests_running")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def _said(result: SampleResult) -> list[list[int]]:
    return [sequence.tokens.tolist() for sequence in result.sequences]


def _gap(topk: Any, place: int, token: int) -> float:
    """How much less likely than our choice theirs was, to us."""
    ids, values = topk.token_ids[place].tolist(), topk.logprobs[place].tolist()
    return values[0] - values[ids.index(token)] if token in ids else float("inf")


def _distance(distances: Sequence[float]) -> dict[str, Any]:
    values = np.asarray(distances)
    return {"mean_abs": float(values.mean()), "max_abs": float(values.max()), "num": int(values.size)}


def _within(distances: Sequence[float]) -> dict[str, Any]:
    found = _distance(distances)
    assert found["mean_abs"] <= MEAN_NATS, f"mean distance over {MEAN_NATS}: {found}"
    return found


def _ms(seconds: Sequence[float]) -> dict[str, float]:
    return {"median": round(1e3 * float(np.median(seconds)), 1), "max": round(1e3 * max(seconds), 1)}
