"""The main job of a client in one script: runs in the venv of any SDK version and prints what it saw as JSON.

It imports nothing but the SDK and what the SDK needs. Each step adds its numbers under its name, `{"error": …}` when
it fails, and nothing where the version has no such method. Ids and times stay out, so that the numbers of two versions
can be compared: they must be equal to the bit. Usage: python -m tests.sdk_matrix.driver WORK_DIR, with TINKER_BASE_URL
and TINKER_API_KEY set.
"""

import inspect
import io
import json
import os
import subprocess
import sys
import tarfile
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tinker
from tinker import types

from tests.sdk_matrix.datums import PROMPT, batch, datum, floats, matrix_datum, passed, policy_datum, sampled
from tests.sdk_matrix.downloads import digests, fetch, status_of

MODEL = "tiny"
STEP = types.AdamParams(learning_rate=1e-2)
FAKE_HUB = """
import os, shutil

class HfApi:
    def whoami(self):
        return {"name": "nobody"}

    def create_repo(self, **_):
        pass

    def upload_folder(self, *, folder_path, **_):
        shutil.copytree(folder_path, os.environ["FAKE_HUB_DIR"])

def hf_hub_download(**_):
    raise FileNotFoundError
"""
"""What `tinker checkpoint push-hf` needs of huggingface_hub, without a network."""


RECIPIENT = "age1xjmn0v3u7hyhu7v08zyf0xhdj25g68le30magxw8vv6afgjmvppspkkwfe"
"""A public key of age; nobody has the secret one."""
AGE_MAGIC = b"age-encryption.org/v1"


def settle(value: Any) -> Any:
    """The client itself: calls that answered with it answer with a future of it since 0.38."""
    return value.result() if hasattr(value, "result") else value


class Job:
    """One client's work, step by step; later steps use what earlier ones made."""

    def __init__(self, work_dir: Path) -> None:
        self.work_dir = work_dir
        self.service: Any = tinker.ServiceClient()
        self.rest: Any = self.service.create_rest_client()

    # -- training

    def capabilities(self) -> Any:
        answer = settle(self.service.get_server_capabilities())
        return [(model.model_name, model.max_context_length) for model in answer.supported_models]

    def new_run(self, rank: int = 4) -> Any:
        created = self.service.create_lora_training_client(
            base_model=MODEL, rank=rank, seed=3, user_metadata={"made by": "driver"}
        )
        return settle(created)

    def create(self) -> Any:
        self.run = self.new_run()
        info = self.run.get_info()
        self.run_id = str(info.model_id)
        return {"rank": info.lora_rank, "model": info.model_data.model_name}

    def forward(self) -> Any:
        return passed(self.run.forward(batch(3), "cross_entropy").result())

    def forward_backward(self) -> Any:
        output = passed(self.run.forward_backward(batch(3), "cross_entropy").result())
        return output, self.run.optim_step(STEP).result().metrics

    def several_chunks(self) -> Any:
        """1,100 datums are sent as two requests, the second one first."""
        future = self.run.forward_backward(batch(1100, 1), "cross_entropy")
        step = self.run.optim_step(STEP)
        return passed(future.result()), step.result().metrics

    def several_chunks_forward(self) -> Any:
        return passed(self.run.forward(batch(1100, 2), "cross_entropy").result())

    def policy_losses(self) -> Any:
        config = {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}
        outputs = [
            self.run.forward_backward([policy_datum()], "importance_sampling").result(),
            self.run.forward_backward([policy_datum()], "ppo", loss_fn_config=config).result(),
        ]
        return [passed(output) for output in outputs], self.run.optim_step(STEP).result().metrics

    def matrix_targets(self) -> Any:
        return passed(self.run.forward_backward([matrix_datum()], "cross_entropy").result())

    def refused_request(self) -> Any:
        """A refusal is the user's error at once, and the run goes on after it."""
        try:
            self.run.forward_backward([datum([1, 2, 9999])], "cross_entropy").result()
        except tinker.BadRequestError as error:
            return str(error)
        raise AssertionError("the request was taken")

    # -- checkpoints

    def save_state(self) -> Any:
        self.run.optim_step(STEP).result()
        self.state_path = self.run.save_state("state").result().path
        return self.kind_of(self.state_path)

    def kind_of(self, path: str) -> str:
        assert path.startswith(f"tinker://{self.run_id}/"), path
        return path.removeprefix(f"tinker://{self.run_id}/")

    def resume(self) -> Any:
        """As the version does it by itself with this server."""
        made = self.service.create_training_client_from_state(self.state_path)
        with_optimizer = self.service.create_training_client_from_state_with_optimizer(self.state_path)
        return self.goes_on(settle(made)), self.goes_on(settle(with_optimizer))

    def resume_by_create_model(self) -> Any:
        """As versions before 0.38 do it with servers that know nothing else."""
        holder = self.service.holder
        config = holder._client_config
        if hasattr(config, "create_model_via_load_weights"):
            holder._client_config = config.model_copy(update={"create_model_via_load_weights": False})
        try:
            return self.resume()
        finally:
            holder._client_config = config

    def load_state(self) -> Any:
        """Into a run that is there already."""
        fresh, warm = self.new_run(), self.new_run()
        fresh.load_state(self.state_path).result()
        warm.load_state_with_optimizer(self.state_path).result()
        return self.goes_on(fresh), self.goes_on(warm)

    @staticmethod
    def goes_on(run: Any) -> Any:
        trained = passed(run.forward_backward(batch(3, 5), "cross_entropy").result())
        metrics = run.optim_step(STEP).result().metrics
        return trained, metrics, passed(run.forward(batch(3, 6), "cross_entropy").result())

    # -- sampling

    def draw(self, sampler: Any) -> Any:
        params = types.SamplingParams(max_tokens=8, seed=42, temperature=0.8, top_p=0.95)
        prompt = types.ModelInput.from_ints(PROMPT)
        answer = sampler.sample(prompt, 2, params, include_prompt_logprobs=True, topk_prompt_logprobs=2)
        return sampled(answer.result())

    def sample_base_model(self) -> Any:
        return self.draw(settle(self.service.create_sampling_client(base_model=MODEL)))

    def sample_saved_weights(self) -> Any:
        self.sampler_path = self.run.save_weights_for_sampler("sampler").result().path
        sampler = settle(self.service.create_sampling_client(model_path=self.sampler_path))
        return self.kind_of(self.sampler_path), self.draw(sampler)

    def sample_snapshot(self) -> Any:
        self.sampler = settle(self.run.save_weights_and_get_sampling_client())
        return self.draw(self.sampler)

    def many_samples(self) -> Any:
        """Requests in flight together; greedy."""
        params = types.SamplingParams(max_tokens=4, temperature=0.0)
        prompts = [types.ModelInput.from_ints([1 + i, 2 + i]) for i in range(40)]
        futures = [self.sampler.sample(prompt, 1, params) for prompt in prompts]
        return [list(map(int, future.result().sequences[0].tokens)) for future in futures]

    def compute_logprobs(self) -> Any:
        return floats(self.sampler.compute_logprobs(types.ModelInput.from_ints(PROMPT)).result())

    # -- saved things

    def list_runs(self) -> Any:
        run = self.rest.get_training_run(self.run_id).result()
        by_path = self.rest.get_training_run_by_tinker_path(self.state_path).result()
        runs = self.rest.list_training_runs(limit=100).result().training_runs
        assert self.run_id in [each.training_run_id for each in runs]
        assert run.training_run_id == by_path.training_run_id == self.run_id
        return run.base_model, run.is_lora, run.lora_rank, run.user_metadata

    def list_checkpoints(self) -> Any:
        own = self.rest.list_checkpoints(self.run_id).result().checkpoints
        everything = self.rest.list_user_checkpoints(limit=100).result().checkpoints
        assert {each.tinker_path for each in own} <= {each.tinker_path for each in everything}
        return sorted((each.checkpoint_id, each.checkpoint_type, each.public) for each in own)

    def weights_info(self) -> Any:
        info = self.rest.get_weights_info_by_tinker_path(self.state_path).result()
        return info.base_model, info.is_lora, info.lora_rank

    def sessions(self) -> Any:
        session_id = self.run_id.split(":")[0]
        assert session_id in self.rest.list_sessions(limit=100).result().sessions
        session = self.rest.get_session(session_id).result()
        assert self.run_id in session.training_run_ids
        return len(session.training_run_ids) > 1, len(session.sampler_ids) > 1

    def publish(self) -> Any:
        return (
            self.is_public(),
            self.rest.publish_checkpoint_from_tinker_path(self.sampler_path).result(),
            (self.is_public()),
            self.rest.unpublish_checkpoint_from_tinker_path(self.sampler_path).result(),
            self.is_public(),
        )

    def is_public(self) -> bool:
        return self.sampler_row().public

    def sampler_row(self) -> Any:
        rows = self.rest.list_checkpoints(self.run_id).result().checkpoints
        return next(row for row in rows if row.tinker_path == self.sampler_path)

    def ttl(self) -> Any:
        self.rest.set_checkpoint_ttl_from_tinker_path(self.sampler_path, 7200).result()
        limited = self.sampler_row()
        self.rest.set_checkpoint_ttl_from_tinker_path(self.sampler_path, None).result()
        return limited.expires_at is not None, self.sampler_row().expires_at

    def archive(self) -> Any:
        """The names and contents in the tar behind the link; SDKs up to 0.35 ask for it."""
        if not hasattr(self.rest, "get_checkpoint_archive_url_from_tinker_path"):
            return None
        answer = self.rest.get_checkpoint_archive_url_from_tinker_path(self.sampler_path).result()
        with tarfile.open(fileobj=io.BytesIO(fetch(answer.url))) as tar:
            files = {entry.name: tar.extractfile(entry).read() for entry in tar}  # pyright: ignore[reportOptionalMemberAccess]
        assert "checkpoint_complete" in files
        return digests(files)

    # -- weights for other tools

    def external_weights(self) -> Any:
        """The contents behind the links, which need no key; they end with the checkpoint."""
        if not hasattr(self.run, "save_weights_external"):
            return None
        path = self.run.save_weights_external("external").result().path
        self.rest.set_checkpoint_ttl_from_tinker_path(path, 7200).result()
        urls, files = self.links(path)
        self.rest.delete_checkpoint_from_tinker_path(path).result()
        return self.kind_of(path), digests(files), [status_of(url) for url in urls.values()]

    def encrypted_weights(self) -> Any:
        """Every file is sealed to the recipient, and named so."""
        save = getattr(self.run, "save_weights_external", None)
        if save is None or "age_encryption_recipients" not in inspect.signature(save).parameters:
            return None
        path = save("sealed", ttl_seconds=3600, age_encryption_recipients=[RECIPIENT]).result().path
        _, files = self.links(path)
        self.rest.delete_checkpoint_from_tinker_path(path).result()
        return {name: data.startswith(AGE_MAGIC) for name, data in sorted(files.items())}

    def links(self, path: str) -> tuple[dict[str, str], dict[str, bytes]]:
        """Address and content of each file."""
        urls = self.rest.get_external_weights_urls(path).result().urls
        return urls, {name: fetch(url) for name, url in urls.items()}

    def copy_weights(self) -> Any:
        """Resumed from, a copy of the state goes on as the state itself does."""
        if not hasattr(self.rest, "copy_weights"):
            return None
        copy = self.rest.copy_weights(self.state_path, "archive").result()
        went_on = self.goes_on(settle(self.service.create_training_client_from_state_with_optimizer(copy)))
        self.rest.delete_checkpoint_from_tinker_path(copy).result()
        return copy.split("/", 3)[3], went_on

    # -- command line

    def cli(self, *arguments: str) -> str:
        environment = {**os.environ, "FAKE_HUB_DIR": str(self.work_dir / "hub"), "PYTHONPATH": str(self.work_dir)}
        command = [sys.executable, "-m", "tinker.cli", "--format", "json", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def cli_lists(self) -> Any:
        assert self.run_id in self.cli("run", "list", "--limit", "0")
        assert self.state_path in self.cli("checkpoint", "list", "--run-id", self.run_id)
        return True

    def cli_download(self) -> Any:
        if not hasattr(self.rest, "get_checkpoint_archive_url_from_tinker_path"):
            return None
        self.cli("checkpoint", "download", self.sampler_path, "--output", str(self.work_dir / "download"))
        (target,) = (self.work_dir / "download").iterdir()
        return sorted(file.name for file in target.iterdir())

    def cli_push_hf(self) -> Any:
        """The command's own check of the archive, and what it would have uploaded."""
        if not hasattr(self.rest, "get_checkpoint_archive_url_from_tinker_path"):
            return None
        (self.work_dir / "huggingface_hub.py").write_text(FAKE_HUB)
        self.cli("checkpoint", "push-hf", self.sampler_path, "--repo", "nobody/adapter")
        return sorted(file.name for file in (self.work_dir / "hub").iterdir())

    def cli_external_download(self) -> Any:
        """A training checkpoint as its temporary export, which is gone afterwards."""
        if hasattr(self.rest, "get_checkpoint_archive_url_from_tinker_path"):
            return None
        before = self.rest.list_user_checkpoints(limit=1).result().cursor.total_count
        self.cli("checkpoint", "download", self.state_path, "--output", str(self.work_dir / "download"))
        (target,) = (self.work_dir / "download").iterdir()
        left = self.rest.list_user_checkpoints(limit=1).result().cursor.total_count - before
        return left, digests({file.name: file.read_bytes() for file in target.iterdir()})

    def cli_external_push_hf(self) -> Any:
        if hasattr(self.rest, "get_checkpoint_archive_url_from_tinker_path"):
            return None
        (self.work_dir / "huggingface_hub.py").write_text(FAKE_HUB)
        self.cli("checkpoint", "push-hf", self.state_path, "--repo", "nobody/adapter")
        return sorted(file.name for file in (self.work_dir / "hub").iterdir())

    # -- the end

    def delete(self) -> Any:
        self.rest.delete_checkpoint_from_tinker_path(self.sampler_path).result()
        self.rest.delete_checkpoint(self.run_id, "weights/state").result()
        return [row.checkpoint_id for row in self.rest.list_checkpoints(self.run_id).result().checkpoints]

    def finish(self) -> Any:
        if not hasattr(self.service, "close"):
            return None
        self.service.close("success").result()
        return True


STEPS: tuple[Callable[[Job], Any], ...] = (
    Job.capabilities, Job.create, Job.forward, Job.forward_backward, Job.several_chunks, Job.several_chunks_forward,
    Job.policy_losses, Job.matrix_targets, Job.refused_request, Job.save_state, Job.resume, Job.resume_by_create_model,
    Job.load_state, Job.sample_base_model, Job.sample_saved_weights, Job.sample_snapshot, Job.many_samples,
    Job.compute_logprobs, Job.list_runs, Job.list_checkpoints, Job.weights_info, Job.sessions, Job.publish, Job.ttl,
    Job.archive, Job.external_weights, Job.encrypted_weights, Job.copy_weights, Job.cli_lists, Job.cli_download,
    Job.cli_push_hf, Job.cli_external_download, Job.cli_external_push_hf, Job.delete, Job.finish,
)  # fmt: skip


def traits(service: Any) -> dict[str, str]:
    """How this version speaks, given this server's client/config."""
    config = service.holder._client_config
    package = Path(tinker.__file__).parent
    has_encoder = (package / "proto" / "request_conv.py").exists() and getattr(config, "proto_write_fwdbwd", True)
    has_decoder = (package / "proto" / "response_conv.py").exists()
    has_forward = '"/api/v1/forward"' in (package / "resources" / "training.py").read_text()
    is_forward_json = has_forward and not getattr(config, "fwd_via_fwdbwd", False)
    asks_first = "get_weights_info" in inspect.getsource(type(service).create_training_client_from_state)
    is_one_call = getattr(config, "create_model_via_load_weights", not asks_first)
    return {
        "forward": "JSON" if is_forward_json else "protobuf",
        "forward_backward": "protobuf" if has_encoder else "JSON",
        "results": "protobuf" if has_decoder else "JSON",
        "resume": "load_weights" if is_one_call else "create_model, load_weights",
    }


def main() -> None:
    job = Job(Path(sys.argv[1]))
    speaks = traits(job.service)
    results: dict[str, Any] = {}
    for step in STEPS:
        print(f"{time.monotonic():.1f} s: {step.__name__}", file=sys.stderr, flush=True)
        try:
            numbers = step(job)
        except Exception:  # noqa: BLE001 whatever goes wrong is the result of the step
            results[step.__name__] = {"error": traceback.format_exc(limit=-6)}
            continue
        if numbers is not None:
            results[step.__name__] = numbers
    print(json.dumps({"version": version("tinker"), "traits": speaks, "steps": results}))


if __name__ == "__main__":
    main()
