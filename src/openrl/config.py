"""The one configuration tree: defaults, then a TOML file, then OPENRL_* environment variables, then flags.

`OPENRL_GATEWAY__PORT=8001` sets `gateway.port`. This file alone reads the environment.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from openrl.config_access import AuthConfig, ClientConfig, Flag, Section


def check_address(address: str) -> str:
    """The address, if it is empty or host:port; raises ValueError."""
    host, _, port = address.rpartition(":")
    if address and not (host and port.isdigit()):
        raise ValueError(f"{address!r} is not host:port")
    return address


HttpAddress = Annotated[str, AfterValidator(check_address)]


class ModelConfig(Section):
    """One base model to serve."""

    name: str
    """What clients ask for; may contain ':' and '/'."""
    path: Path
    """Directory in Hugging Face format."""


class RatesConfig(Section):
    """What usage costs, in US dollars; a kind without a rate has no cost."""

    training: float | None = Field(default=None, ge=0)
    """Per million tokens of forward and forward_backward."""
    prefill: float | None = Field(default=None, ge=0)
    """Per million prompt tokens computed while sampling."""
    cached_prefill: float | None = Field(default=None, ge=0)
    """Per million prompt tokens that were found computed already."""
    sample: float | None = Field(default=None, ge=0)
    """Per million sampled tokens."""
    storage: float | None = Field(default=None, ge=0)
    """Per gigabyte (10^9 bytes) of checkpoints held for 720 hours."""
    gpu_second: float | None = Field(default=None, ge=0)
    """Per second of device time, added to what the tokens cost."""


class GatewayConfig(Section):
    """The HTTP side."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    max_body_bytes: int = Field(default=256 * 2**20, ge=2**16)
    """Larger bodies are refused before they are read."""
    max_body_bytes_in_flight: int = Field(default=320 * 2**20, ge=2**16)
    """Bytes of bodies over 64 KiB that are taken in at once; others wait. A tenant may have half of it, or one body."""
    max_connections: int = Field(default=8192, ge=16)
    """Beyond it the connection that is idle longest is closed."""
    head_timeout_s: float = Field(default=15.0, gt=0)
    """URL and headers of a request must come within this time."""
    min_body_rate: int = Field(default=8192, ge=1)
    """Bytes per second that bodies must come with, and answers be taken with."""
    long_poll_s: float = Field(default=25.0, gt=0, le=40)
    """How long a poll is held; clients give up at 45 s."""
    session_timeout_s: float = Field(default=300.0, gt=10)
    """A session without a heartbeat for this long is expired."""
    max_datums: int = Field(default=4096, ge=1)
    """Datums in one forward_backward request."""
    max_samples: int = Field(default=1024, ge=1)
    """Samples of one prompt in one request."""
    download_link_s: float = Field(default=900.0, gt=0)
    """How long a link to files can be used without a key; clients ask for a new one below 300 s."""
    max_rank: int = Field(default=256, ge=1)
    """Largest LoRA rank a run may ask for."""
    jwt_auth: bool = False
    """Clients exchange their API key for short-lived tokens and send those."""
    jwt_lifetime_s: float = Field(default=3600.0, ge=1, le=86400)
    """How long a token is valid."""
    secret_file: Path | None = None
    """Holds what download links and tokens are signed with, in hex; the same for all gateways of a store. Empty: made
    in the data directory."""
    drain_delay_s: float = Field(default=0.0, ge=0)
    """On SIGTERM the gateway says that it is not ready, and goes on answering for this long: balancers need time."""
    rates: RatesConfig = RatesConfig()
    """What usage costs."""


class StoreConfig(Section):
    """Rows and files."""

    url: str = ""
    """postgresql://USER@HOST/DATABASE or sqlite:///FILE; empty: SQLite in the data directory."""
    blobs_url: str = ""
    """Where payloads, results and checkpoints are: s3://BUCKET/PREFIX, gs://…, az://… or file:///DIRECTORY; empty: in
    the data directory. Credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, …)."""
    s3_endpoint: str = ""
    """URL of an S3-compatible server; empty: AWS's own."""
    s3_region: str = ""
    """Region of the bucket; empty: as the environment says."""
    s3_allow_http: bool = False
    """Whether the endpoint may be http:// on another machine."""
    cache_bytes: int = Field(default=20 * 2**30, ge=0)
    """Local copies of an object store's files, for downloads; what is in use may exceed it."""
    result_retention_s: float = Field(default=3600.0, gt=0)
    """Results stay retrievable for this long after their request finished."""
    expired_run_retention_s: float = Field(default=7 * 86400.0, gt=0)
    """The last state of a run whose client went away stays for this long, as checkpoint weights/expired-NUMBER."""
    custom_loss_retention_s: float = Field(default=30 * 86400.0, gt=0)
    """A custom loss is kept for this long after its last use, and while a session or run that used it goes on."""
    trace_retention_s: float = Field(default=86400.0, ge=3600)
    """An exported session trace is kept for this long; links to one last an hour."""
    pack_bytes: int = Field(default=64 * 2**20, ge=4096)
    """A payload pack in a directory is closed when it reaches this size."""
    migrate: bool = True
    """Bring a database of an earlier version to this version's schema on start. If not, a process waits for
    `openrl migrate`."""
    migration_wait_s: float = Field(default=600.0, ge=0)
    """How long it waits, at most, before it ends."""


class SchedulerConfig(Section):
    """Fairness and replay."""

    max_replay_s: float = Field(default=30.0, gt=0)
    """A run is snapshotted when replaying it would take longer than this (device seconds)."""
    tenant_shares: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict[str, float])
    """By tenant id: its share of a device where several tenants want it, 1 for those that are not named. A weight set
    by `openrl admin quotas` counts instead."""
    lease_s: float = Field(default=10.0, gt=0)
    """A standby takes over when the leading scheduler has not been heard of for this long (a store that is shared)."""
    http_address: HttpAddress = ""
    """host:port where a scheduler process of its own answers probes, /autoscale/POOL and /metrics; empty: nowhere."""
    worker_silence_s: float = Field(default=60.0, gt=1)
    """A worker that says nothing for this long is given up; it reports about once a second."""
    worker_stuck_s: float = Field(default=600.0, gt=1)
    """A worker whose compute thread has not come to the end of a step for this long is given up."""
    drain_s: float = Field(default=30.0, ge=0)
    """On SIGTERM what workers have in hand is waited for at most this long; the rest runs again."""
    patch_deletion_cost: bool = False
    """On Kubernetes: the leader annotates its workers' pods, so that idle ones go first when a pool shrinks. Its
    service account must be allowed to patch pods, and workers be named as their pods."""
    kubernetes_url: str = "https://kubernetes.default.svc"
    """Where that API is."""
    service_account_dir: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount")
    """Holds token, ca.crt and namespace."""


class QuotasConfig(Section):
    """Limits of every tenant that has none of its own (`openrl admin quotas`); unset: no limit. See docs/quotas.md."""

    gpu_seconds_month: float | None = Field(default=None, ge=0)
    """Device seconds in a calendar month of UTC."""
    gpu_seconds_day: float | None = Field(default=None, ge=0)
    """Device seconds in a day of UTC."""
    stored_bytes: int | None = Field(default=None, ge=0)
    """Bytes of checkpoints, snapshots of open runs and unnamed sampler saves."""
    live_runs: int | None = Field(default=None, ge=0)
    """Training runs that are not closed."""
    running_requests: int | None = Field(default=None, ge=1)
    """Requests that compute at once; the others wait in order."""
    queued_requests: int | None = Field(default=None, ge=1)
    """Requests that were accepted and have not finished; more get 429 until there is room."""
    tokens_per_s: float | None = Field(default=None, gt=0)
    """Tokens a second, of training and sampling together."""
    burst_tokens: float | None = Field(default=None, gt=0)
    """Tokens that may come at once after a rest; unset: ten seconds' worth."""
    requests_per_s: float | None = Field(default=None, gt=0)
    """HTTP requests a second to one gateway, without polls and heartbeats."""


class RpcConfig(Section):
    """Between the scheduler and workers that are processes of their own."""

    address: str = "tcp:127.0.0.1:7600"
    """Where the scheduler listens, "tcp:host:port" or "unix:/path". A worker may have several, with commas between,
    or a name with several IP addresses, and tries them in turn: those of the leading scheduler and of its standbys."""
    secret_file: Path | None = None
    """Holds what both ends prove to each other that they know, in hex; empty: made in the data directory."""
    silence_s: float = Field(default=30.0, gt=0)
    """A worker leaves a scheduler that says nothing for this long; it says something three times as often."""


class TrainingConfig(Section):
    """The training engine."""

    micro_batch_tokens: int = Field(default=0, ge=0)
    """Tokens in one packed pass; 0: 384 on CPU; on CUDA 8192 from 4B parameters on, more for smaller models."""
    activation_bytes: int = Field(default=0, ge=0)
    """Device memory for the activations of a pass; 0: on CUDA what is free when it begins, on CPU no bound. Longer
    sequences than fit have layers recomputed."""
    resident_runs: int = Field(default=32, ge=1)
    """Runs kept in device memory; the others wait on the host and on disk."""
    host_bytes: int = Field(default=4 * 2**30, ge=0)
    """Host memory for runs that are not in device memory; beyond it they wait on disk."""


class SamplingConfig(Section):
    """The sampling engine."""

    engine: Literal["built-in", "vllm"] = "built-in"
    """What samples: the worker itself, or servers that run vLLM (docs/vllm.md)."""
    vllm_urls: tuple[str, ...] = ()
    """Base URLs of vLLM servers, "http://HOST:8000", all of this worker's base model and for no other worker."""
    vllm_adapter_dir: Path = Path("vllm-adapters")
    """Where adapters are written for the vLLM servers, which read them under the same path. A relative path is in the
    data directory."""
    vllm_max_in_flight: int = Field(default=256, ge=1)
    """Samples that one vLLM server has at once; the others wait here."""
    vllm_request_s: float = Field(default=1800.0, gt=0)
    """A vLLM server that takes longer for one request has failed at it."""
    vllm_health_s: float = Field(default=2.0, gt=0)
    """Pause between two checks of a vLLM server."""
    vllm_api_key_file: Path | None = None
    """Holds the key that the vLLM servers were started with (--api-key); empty: they need none."""
    max_sequences: int = Field(default=0, ge=0)
    """Sequences decoded at once; 0: 32 on CPU, 256 on CUDA."""
    cache_bytes: int = Field(default=0, ge=0)
    """KV cache; 0: 512 MiB on CPU, 30 % of free memory on CUDA."""
    block_tokens: int = Field(default=16, ge=8)
    """Tokens in one KV block."""
    resident_adapters: int = Field(default=64, ge=1)
    """Sampler snapshots kept in device memory; with vLLM: loaded at once on one server."""
    held_bytes: int = Field(default=2**30, ge=0)
    """Snapshots that were just saved are held in device memory up to this size, until they are sampled from."""
    prefill_tokens: int = Field(default=0, ge=0)
    """Prompt tokens computed per step; 0: 512 on CPU, 8192 on CUDA."""
    max_slowdown: float = Field(default=1.5, ge=1.25)
    """Most that the samples of others slow down the decoding of a tenant that has less than its part of the batch; a
    large value favours throughput."""
    burst_s: float | None = Field(default=None, ge=0)
    """Sequences decode in bursts that end about this long after a request of them has ended, and after four times this
    in any case; a new request ends one too. 0: one step at a time. Unset: 0.05 on CUDA, 0 on CPU."""


WorkerRole = Literal["train", "sample", "both"]
"""What a worker is for."""


class WorkerConfig(Section):
    """The process around the engines."""

    pool: str = "default"
    """Workers of one pool are alike, and are added and taken away together."""
    role: WorkerRole = "both"
    """Whether it takes training runs, samples, or both. One that only samples, through vLLM, loads no model."""

    device: str = "auto"
    """"cpu", "cuda", "cuda:0"; "auto" takes CUDA where there is a GPU."""
    dtype: str = "auto"
    """Compute type: "float32" or "bfloat16"; "auto": float32 on CPU, bfloat16 on CUDA."""
    fp32_residual: bool = False
    """Layers add to an fp32 stream where the compute type is narrower: trainer and sampler agree better, training takes
    some more memory. See docs/performance.md."""
    compile: Flag = "auto"
    """Compile the layers' elementwise work with torch.compile; "auto": on CUDA. On CPU rows then depend on
    each other in their last bits."""
    deterministic: bool = False
    """Bit-equal results whatever shares the batch, also on CUDA (slower there); always so on CPU."""
    threads: int = Field(default=0, ge=0)
    """CPU threads for tensors; 0: one per core."""
    max_slice_s: float = Field(default=0.1, ge=0)
    """While sequences decode, training holds the device for about this long between two steps of theirs, if what it
    runs can be divided so far; 0: a whole micro-batch at a time. See docs/performance.md."""
    max_training_lag_s: float = Field(default=1.0, ge=0)
    """Sequences decode first until training is this far behind its share of the device (seconds); then both have
    their share. 0: shares at every moment."""
    http_address: HttpAddress = ""
    """host:port where a worker process of its own answers probes, /drain and /metrics; empty: nowhere."""
    longest_step_s: float = Field(default=900.0, gt=1)
    """/livez fails when the compute thread has been in one step, or the process's loop has not moved, for longer: more
    than scheduler.worker_stuck_s."""
    drain_s: float = Field(default=30.0, ge=0)
    """On SIGTERM a worker finishes what it has in hand and hands its runs over for at most this long."""


class TelemetryConfig(Section):
    """What is told to monitoring: docs/observability.md."""

    otlp_endpoint: str = Field(default_factory=lambda: os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", ""))
    """http(s)://HOST:PORT of an OpenTelemetry collector that takes traces by OTLP over HTTP; empty: as
    OTEL_EXPORTER_OTLP_ENDPOINT says, and without that no traces."""
    sample_ratio: float = Field(default=1.0, ge=0, le=1)
    """Part of the requests that are traced, unless their client has decided that (`traceparent`)."""
    tenant_series: int = Field(default=200, ge=0)
    """Device time and tokens are shown of as many tenants, those that used the device last."""
    run_series: int = Field(default=0, ge=0)
    """Device time is shown of as many open runs, those that used the device last; each has its id as a label."""


class PoolConfig(Section):
    """What tells how many workers a pool should have; see docs/operations.md."""

    models: tuple[str, ...] = ()
    """Names of the base models that its workers serve. Empty: as those that are connected say; while there are none,
    every model that nobody serves."""
    role: WorkerRole = "both"
    """What its workers are for; counts where models are named."""
    runs_per_worker: int = Field(default=16, ge=1)
    """Training runs that one worker should have."""
    training_tokens_per_s: float | None = Field(default=None, gt=0)
    """What one worker trains. Unset: as measured, see docs/operations.md."""
    sampling_tokens_per_s: float | None = Field(default=None, gt=0)
    """What one worker samples, prompts included. Unset: as measured."""
    target_wait_s: float = Field(default=60.0, gt=0)
    """There should be so many workers that what waits is done in this time."""
    hot_workers: int = Field(default=1, ge=1)
    """So many at least while a session has an open run or a sampler of its models, or anything waits."""


class Config(BaseSettings):
    """Everything a server process needs to know; checked when the process starts."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="OPENRL_",
        env_nested_delimiter="__",
        use_attribute_docstrings=True,
        toml_file=None,
    )

    data_dir: Path = Path(".openrl")
    """Database, payloads and checkpoints."""
    models: tuple[ModelConfig, ...] = ()
    """Base models to serve."""
    gateway: GatewayConfig = GatewayConfig()
    auth: AuthConfig = AuthConfig()
    client: ClientConfig = ClientConfig()
    store: StoreConfig = StoreConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    quotas: QuotasConfig = QuotasConfig()
    rpc: RpcConfig = RpcConfig()
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()
    worker: WorkerConfig = WorkerConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    pools: dict[str, PoolConfig] = {}
    """Worker pools by name, for the scheduler to tell how many workers each should have."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags win over the environment, the environment over the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def outside_environment() -> dict[str, str]:
    """The environment of this process, for those that choose what others get of it."""
    return dict(os.environ)


def worker_environment(data_dir: Path) -> dict[str, str]:
    """The environment of worker processes: ours, with sleeping tensor threads and a cache of compiled kernels.

    Threads that spin while another process holds their core made small operations 4 to 7 times slower where a
    client, the server and other work share two cores. Kernels compiled once are there when the worker starts again.
    A value set outside wins.
    """
    cache = data_dir.absolute() / "compiled"
    return {
        "OMP_WAIT_POLICY": "PASSIVE",
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        **os.environ,
    }


def load_config(file: Path | None = None, **flags: object) -> Config:
    """The configuration from `file`, the environment and `flags` (nested dicts; None is ignored).

    Raises pydantic.ValidationError naming every wrong field.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if file is None:
        return Config(**given)  # pyright: ignore[reportArgumentType]

    class FileConfig(Config):
        model_config = SettingsConfigDict(toml_file=file)

    return FileConfig(**given)  # pyright: ignore[reportArgumentType]
