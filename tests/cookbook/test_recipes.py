"""tinker-cookbook 0.6.1, unmodified and offline, against a real server with a tiny random chat model."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cookbook.chat_model import SERVED_NAME, make_workspace, save_chat_model
from tests.live_server import LiveServer, start_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-cookbook" / "bin" / "python"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where recipes start: hub names are folders there, and the cookbook's own packages are installed."""
    subprocess.run([ROOT / "scripts" / "setup_cookbook.sh"], check=True)
    return make_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def cookbook_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    root = tmp_path_factory.mktemp("cookbook")
    model = save_chat_model(root / "model")
    live = start_server(model, root / "data", name=SERVED_NAME)
    yield live
    live.stop()


def run_recipe(server: LiveServer, workspace: Path, recipe: str, *options: str) -> list[dict[str, Any]]:
    """Run `tinker_cookbook.recipes.<recipe>` to its end; returns its metrics, one dict a step."""
    log = workspace / recipe.replace(".", "-")
    environment = os.environ | {
        "TINKER_BASE_URL": server.url,
        "TINKER_API_KEY": server.key,
        "TINKER_TELEMETRY": "0",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    command = [PYTHON, "-m", f"tinker_cookbook.recipes.{recipe}", f"model_name={SERVED_NAME}", f"log_path={log}"]
    done = subprocess.run(
        [*map(str, command), "behavior_if_log_dir_exists=delete", *options],
        cwd=workspace,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [json.loads(line) for line in (log / "metrics.jsonl").read_text().splitlines()]


def values(metrics: list[dict[str, Any]], name: str) -> list[float]:
    return [step[name] for step in metrics if name in step]


MATH = ("groups_per_batch=8", "group_size=4", "max_tokens=5", "max_steps=3", "eval_every=0", "compute_post_kl=True")


@pytest.mark.parametrize(
    "loss",
    [
        (),
        ("loss_fn=ppo", "num_substeps=2", 'loss_fn_config={"clip_low_threshold":0.9,"clip_high_threshold":1.1}'),
        ("loss_fn=cispo",),
        ("loss_fn=importance_sampling",),
    ],
    ids=["stable_reinforce", "ppo", "cispo", "importance_sampling"],
)
def test_math_rl_trains_on_the_policy_that_sampled(cookbook_server: LiveServer, workspace: Path, loss: tuple[str, ...]):
    metrics = run_recipe(cookbook_server, workspace, "math_rl.train", *MATH, *loss)
    kl = values(metrics, "optim/kl_sample_train_v2")
    assert len(kl) == 3
    assert max(abs(value) for value in kl) <= 1e-5
    assert all(value > 0 for value in values(metrics, "grad_norm"))


def test_chat_sl_lowers_its_loss_and_saves_its_checkpoints(cookbook_server: LiveServer, workspace: Path):
    conversations = workspace / "conversations.jsonl"
    with conversations.open("w") as lines:
        for i in range(64):
            turns = [{"role": "user", "content": f"{i}+1?"}, {"role": "assistant", "content": f"It is {i + 1}."}]
            lines.write(json.dumps({"messages": turns}) + "\n")
    metrics = run_recipe(
        cookbook_server,
        workspace,
        "chat_sl.train",
        f"dataset={conversations}",
        "batch_size=8",
        "save_every=2",
        "rolling_save_every=1",
        "eval_every=2",
        "max_steps=4",
        "learning_rate=0.001",
    )
    nll = values(metrics, "train_mean_nll")
    assert len(nll) == 4
    assert nll[-1] < nll[0]
    saved = [json.loads(line) for line in (workspace / "chat_sl-train" / "checkpoints.jsonl").read_text().splitlines()]
    assert saved[-1]["name"] == "final"
    assert saved[-1]["sampler_path"].startswith("tinker://")
