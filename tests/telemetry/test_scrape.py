"""What a live server shows is what the documentation, the alerts and the dashboard say."""

import json
import re
import urllib.request
from pathlib import Path

import httpx
import pytest
import tinker
import yaml
from tinker import types

from openrl.telemetry.metrics import create_worker_metrics
from tests.live_server import MODEL_NAME, LiveServer

ROOT = Path(__file__).parents[2]
FILES = ROOT / "deploy/helm/openrl/files"
OF_POOLS = "openrl_pool_"  # what a scheduler shows that has pools of workers to scale
DATUM = types.Datum(
    model_input=types.ModelInput.from_ints([1, 2, 3]),
    loss_fn_inputs={"target_tokens": [2, 3, 4], "weights": [1.0, 1.0, 1.0]},  # pyright: ignore[reportArgumentType]
)
_SUFFIX = re.compile(r"_(bucket|sum|count|created)$")


def scrape(server: LiveServer) -> str:
    texts = [urllib.request.urlopen(url).read().decode() for url in {f"{server.url}/metrics", *server.metrics_urls}]
    return "".join(texts)


def names_in(exposition: str) -> set[str]:
    """Metrics as PromQL calls them; a histogram once."""
    found = re.findall(r"^# TYPE (\S+) (\S+)$", exposition, re.MULTILINE)
    return {name for name, _ in found if not name.endswith("_created")}


@pytest.fixture(scope="module")
def exposition(server: LiveServer) -> str:
    """After some training and sampling, and a call that was refused."""
    assert httpx.get(f"{server.url}/api/v1/get_server_capabilities").status_code == 401
    return _train_and_scrape(server)


def _train_and_scrape(server: LiveServer) -> str:
    with tinker.ServiceClient(base_url=server.url, api_key=server.key) as client:
        trainer = client.create_lora_training_client(MODEL_NAME, rank=4).result()
        trainer.forward_backward([DATUM], "cross_entropy").result()
        trainer.optim_step(types.AdamParams(learning_rate=1e-3)).result()
        sampler = trainer.save_weights_and_get_sampling_client().result()
        sampler.sample(types.ModelInput.from_ints([1, 2, 3]), 1, types.SamplingParams(max_tokens=4)).result()
        return scrape(server)


def test_the_documentation_lists_exactly_what_there_is(exposition: str):
    documented = set(re.findall(r"^\| `(openrl_\w+)`", (ROOT / "docs/observability.md").read_text(), re.MULTILINE))
    there = names_in(exposition) | names_in(create_worker_metrics().render().decode())
    assert {name for name in documented if not name.startswith(OF_POOLS)} == {
        name for name in there if not name.startswith(OF_POOLS)
    }
    assert {name for name in there if name.startswith(OF_POOLS)} <= documented


def test_alerts_and_dashboard_ask_for_what_is_documented():
    documented = set(re.findall(r"^\| `(openrl_\w+)`", (ROOT / "docs/observability.md").read_text(), re.MULTILINE))
    groups = yaml.safe_load((FILES / "rules.yaml").read_text())["groups"]
    dashboard = json.loads((FILES / "dashboard.json").read_text())
    panels = [panel for row in dashboard["panels"] for panel in (row, *row.get("panels", []))]
    expressions = [rule["expr"] for group in groups for rule in group["rules"]]
    expressions += [target["expr"] for panel in panels for target in panel.get("targets", ())]
    asked = {name for expression in expressions for name in re.findall(r"openrl_\w+", expression)}
    assert {name for name in asked if name not in documented and _SUFFIX.sub("", name) not in documented} == set()


@pytest.mark.parametrize(
    "series",
    [
        'openrl_queue_wait_seconds_count{kind="forward_backward"}',
        'openrl_queue_wait_seconds_count{kind="sample"}',
        'openrl_requests_total{kind="optim_step",outcome="done"}',
        'openrl_gpu_seconds_total{kind="forward_backward",tenant=',
        'openrl_tokens_total{kind="prefill",tenant=',
        'openrl_tokens_total{kind="sample",tenant=',
        "openrl_store_commit_seconds_count",
        "openrl_leading",
        "openrl_workers",
        "openrl_live_runs",
        'openrl_rejected_requests_total{code="unauthorized"}',
        'openrl_http_requests_total{method="POST",route="/api/v1/asample",status="200"}',
    ],
)
def test_what_happened_is_counted(exposition: str, series: str):
    values = [line.rpartition(" ")[2] for line in exposition.splitlines() if line.startswith(series)]
    assert values
    assert all(float(value) > 0 for value in values)
