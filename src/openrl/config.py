"""The one configuration tree: defaults, then a TOML file, then OPENRL_* environment variables, then flags.

`OPENRL_GATEWAY__PORT=8001` sets `gateway.port`. This file alone reads the environment.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)


class Section(BaseModel):
    """A frozen group of settings; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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


class GatewayConfig(Section):
    """The HTTP side."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    max_body_bytes: int = Field(default=256 * 2**20, ge=2**16)
    """Larger bodies are refused before they are read."""
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
    rates: RatesConfig = RatesConfig()
    """What usage costs."""


Flag = bool | Literal["auto"]


class ClientConfig(Section):
    """What the server tells SDK clients to do; "auto" is what docs/client-flags.md found faster."""

    sample_use_retrieve_futures: Flag = "auto"
    """One poll for all samples of a sampling client, in place of one each."""
    sample_join_sampling_session: Flag = "auto"
    """Copies of a sampling client ask for their number, in place of drawing it."""
    sample_cancel_enabled: Flag = "auto"
    """Clients tell of samples that they no longer wait for."""
    sample_cancel_max_batch_size: int = Field(default=64, ge=1)
    """Cancellations that a client sends at once."""
    proto_compress_fwdbwd: Flag = "auto"
    """Clients compress forward_backward bodies with zstd."""
    parallel_fwdbwd_chunks: Flag = "auto"
    """Clients send the chunks of one forward_backward side by side."""
    fwdbwd_max_chunk_len: int = Field(default=0, ge=0)
    """Datums in one chunk; 0: 1024, or gateway.max_datums where that is less."""
    fwdbwd_max_chunk_bytes_count: int = Field(default=0, ge=0)
    """Bytes in one chunk as the client estimates them; a larger datum goes alone. 0: 5 MB, or half of
    gateway.max_body_bytes where that is less."""
    complete_metadata: Flag = "auto"
    """Clients are told the size of a large result before it is sent, and fetch it when they have room."""
    complete_metadata_bytes: int = Field(default=2**20, ge=1)
    """What counts as large."""


class StoreConfig(Section):
    """Rows and files."""

    url: str = ""
    """SQLAlchemy URL; empty: SQLite in the data directory."""
    result_retention_s: float = Field(default=3600.0, gt=0)
    """Results stay retrievable for this long after their request finished."""
    expired_run_retention_s: float = Field(default=7 * 86400.0, gt=0)
    """The last state of a run whose client went away stays for this long, as checkpoint weights/expired-NUMBER."""
    custom_loss_retention_s: float = Field(default=30 * 86400.0, gt=0)
    """A custom loss is kept for this long after its last use, and while a session or run that used it goes on."""
    trace_retention_s: float = Field(default=86400.0, ge=3600)
    """An exported session trace is kept for this long; links to one last an hour."""
    pack_bytes: int = Field(default=64 * 2**20, ge=4096)
    """A payload pack is closed when it reaches this size."""


class SchedulerConfig(Section):
    """Fairness and replay."""

    max_replay_s: float = Field(default=30.0, gt=0)
    """A run is snapshotted when replaying it would take longer than this (device seconds)."""
    tenant_shares: dict[str, Annotated[float, Field(gt=0)]] = {}
    """By tenant id: its share of a device where several tenants want it; 1 for those that are not named."""


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

    max_sequences: int = Field(default=0, ge=0)
    """Sequences decoded at once; 0: 32 on CPU, 256 on CUDA."""
    cache_bytes: int = Field(default=0, ge=0)
    """KV cache; 0: 512 MiB on CPU, 30 % of free memory on CUDA."""
    block_tokens: int = Field(default=16, ge=8)
    """Tokens in one KV block."""
    resident_adapters: int = Field(default=64, ge=1)
    """Sampler snapshots kept in device memory."""
    prefill_tokens: int = Field(default=0, ge=0)
    """Prompt tokens computed per step; 0: 512 on CPU, 8192 on CUDA."""
    max_slowdown: float = Field(default=1.5, ge=1.25)
    """Most that the samples of others slow down the decoding of a tenant that has less than its part of the batch; a
    large value favours throughput."""
    burst_s: float | None = Field(default=None, ge=0)
    """Sequences decode for about this long without the host looking at their tokens; a new request waits for the end of
    it. 0: one step at a time. Unset: 0.05 on CUDA, 0 on CPU."""


class WorkerConfig(Section):
    """The process around the engines."""

    device: str = "auto"
    """"cpu", "cuda", "cuda:0"; "auto" takes CUDA where there is a GPU."""
    dtype: str = "auto"
    """Compute type: "float32" or "bfloat16"; "auto": float32 on CPU, bfloat16 on CUDA."""
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
    client: ClientConfig = ClientConfig()
    store: StoreConfig = StoreConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()
    worker: WorkerConfig = WorkerConfig()

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
