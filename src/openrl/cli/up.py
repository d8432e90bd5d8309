"""`openrl up`: the Helm chart on one machine, its pods as processes."""

import asyncio
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from openrl.cli.running import run_until_signalled
from openrl.cluster.autoscaling import autoscalers_of, follow
from openrl.cluster.chart import find_chart, render
from openrl.cluster.cluster import Cluster, Options, run_cluster
from openrl.cluster.display import Display
from openrl.cluster.images import OPENRL
from openrl.cluster.made_secrets import add_missing
from openrl.cluster.manifests import Manifests, read_manifests
from openrl.cluster.networks import Loopback, Namespaces, Network
from openrl.cluster.pod_runner import PodRunner
from openrl.config import outside_environment
from openrl.errors import InvalidRequest, Unavailable

CONFIG_FILE = "/etc/openrl/openrl.toml"
_OURS = ".openrl-up"


def up(
    values: Annotated[
        list[Path] | None, typer.Option("--values", "-f", help="Values of the chart; later files win.")
    ] = None,
    manifests: Annotated[
        list[Path] | None, typer.Option("--manifests", "-m", help="Rendered manifests, or more objects: Secrets.")
    ] = None,
    chart: Annotated[Path | None, typer.Option(help="Directory of the chart, if not the one that came along.")] = None,
    name: Annotated[str, typer.Option(help="Name of the release.")] = "openrl",
    namespace: Annotated[str, typer.Option(help="Namespace in names.")] = "default",
    directory: Annotated[Path, typer.Option("--dir", help="Volumes, logs and made-up secrets.")] = Path(_OURS),
    claim: Annotated[
        list[str] | None, typer.Option(help="NAME=DIR: what a PersistentVolumeClaim is here; else made in --dir.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address at which the gateway answers.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of it; 0 takes a free one.")] = 8000,
    netns: Annotated[
        bool, typer.Option("--netns", help="Network namespaces, mounts and policies as in a cluster; needs root.")
    ] = False,
    test: Annotated[bool, typer.Option("--test", help="Run the chart's tests once all is ready, then end.")] = False,
    logs: Annotated[bool, typer.Option("--logs/--no-logs", help="Show what pods write; it is in --dir anyway.")] = True,
) -> None:
    """Run the chart here: `openrl up -f values.yaml`. Ctrl-C lets it drain; data stays in --dir."""
    texts = [_read(file) for file in manifests or []]
    if values or not texts:
        texts.insert(0, render(chart or find_chart(), values or [], name, namespace))
    found = read_manifests(texts)
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    _have_claims(directory, claim or [])
    console = Console(stderr=True)
    if made := add_missing(found, directory / "secrets.json"):
        console.print(f"made up in {directory / 'secrets.json'}: {', '.join(made)}", soft_wrap=True, highlight=False)
    if netns and os.geteuid() != 0:
        raise Unavailable("--netns needs root: network namespaces and mounts")
    options = Options(directory, namespace, outside_environment(), publish=(host, port))
    asyncio.run(_run(found, options, console, netns=netns, test=test, logs=logs))


async def _run(
    manifests: Manifests, options: Options, console: Console, *, netns: bool, test: bool, logs: bool
) -> None:
    network: Network = Namespaces(options.directory) if netns else Loopback()
    pods: dict[str, PodRunner] = {}
    display = Display(console, pods, show_logs=logs)
    with display:
        async with run_cluster(manifests, network, options, display, pods) as cluster:
            if test:
                await _start(cluster, options.directory)
                await cluster.run_hooks("test")
            else:
                await run_until_signalled([partial(_keep, cluster, manifests, options, console)], cluster.end)
                cluster.hurry()


async def _keep(cluster: Cluster, manifests: Manifests, options: Options, console: Console) -> None:
    """Run everything, then as many of each workload as its autoscaler wants."""
    followed, others = autoscalers_of(manifests, options.namespace)
    if others:
        console.print(f"not followed, their replicas stay: {', '.join(others)}", soft_wrap=True, highlight=False)
    await _start(cluster, options.directory)
    say = partial(console.print, soft_wrap=True, highlight=False)
    async with asyncio.TaskGroup() as group:
        for each in followed:
            group.create_task(follow(cluster, each, say))


async def _start(cluster: Cluster, directory: Path) -> None:
    """Run everything, and say how clients reach it once it is ready."""
    await cluster.install()
    for refused in cluster.services.refused:
        typer.echo(f"Service {refused}", err=True)
    await cluster.wait_until(cluster.is_ready)
    typer.echo(f"All pods are ready: {', '.join(sorted(cluster.pods))}\n")
    if cluster.url:
        key = await _have_key(cluster, directory / "key")
        typer.echo(f"export TINKER_BASE_URL={cluster.url}\nexport TINKER_API_KEY={key}")


async def _have_key(cluster: Cluster, file: Path) -> str:
    """An API key of the default tenant, made by a gateway at the first start."""
    if kept := await asyncio.to_thread(_kept_key, file):
        return kept
    command = (*OPENRL, "keys", "create", "--config", CONFIG_FILE)
    status, output = await cluster.of("gateway")[0].execute(command)
    if status != 0:
        raise Unavailable(f"no API key could be made: {output.strip()}")
    await asyncio.to_thread(_keep_key, file, key := output.strip().splitlines()[-1])
    return key


def _kept_key(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def _keep_key(file: Path, key: str) -> None:
    file.touch(mode=0o600)
    file.write_text(key)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError as error:
        raise InvalidRequest(f"the manifests {file} cannot be read: {error.strerror}") from error


def _have_claims(directory: Path, claims: Sequence[str]) -> None:
    """Let the names of claims lead to their directories."""
    for each in claims:
        name, _, target = each.partition("=")
        if not Path(target).is_dir():
            raise InvalidRequest(f"--claim {each!r} must be NAME=DIR with a directory that is there", value=each)
        link = directory / "claims" / name
        link.parent.mkdir(exist_ok=True)
        if link.is_dir() and not link.is_symlink():
            raise InvalidRequest(f"claim {name!r} has its data in {link} already", value=name)
        link.unlink(missing_ok=True)
        link.symlink_to(Path(target).absolute())
