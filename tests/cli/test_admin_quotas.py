"""Quotas are set, shown and cleared; usage is told with what it costs."""

import asyncio
import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from openrl.cli.admin_quotas import read_limit
from openrl.cli.data_dir import open_store
from openrl.cli.main import app
from openrl.config import Config
from openrl.errors import BadValue, InvalidRequest, NotFound
from openrl.store.identities import OPERATOR, TenantRow
from openrl.store.quotas import Limits, QuotaRow
from tests.store.rows_for_tests import ALICE, BOB, done, request, run, sample, session

NOW = 1_800_000_000.0


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("openrl.cli.admin_quotas.time.time", lambda: NOW)
    asyncio.run(_fill(tmp_path))
    return tmp_path


async def _fill(data_dir: Path) -> None:
    async with open_store(Config(data_dir=data_dir)) as (store, _):
        for tenant in (ALICE, BOB):
            await store.identities.create_tenant(TenantRow(tenant, tenant, 0.0), OPERATOR)
            await store.create_session(session(f"{tenant}-s", tenant, project_id="p"))
            await store.create_run(run(f"{tenant}-r", tenant, session_id=f"{tenant}-s"), request(f"{tenant}-r", 0), b"")
        await store.enqueue(request("alice-r", 1, session_id="alice-s"), b"")
        await store.enqueue(sample("x", 1, session_id="alice-s"), b"")
        await store.finish(
            [
                done("alice-alice-r-1", num_tokens=1_000_000, busy_s=2.0, finished_at=NOW),
                done("x-1", num_tokens=500_000, num_sampled_tokens=500_000, busy_s=1.0, finished_at=NOW),
            ]
        )


def admin(*arguments: str, data_dir: Path, config: str = "") -> str:
    (data_dir / "c.toml").write_text(config)
    words = [*arguments, "--data-dir", str(data_dir), "--config", str(data_dir / "c.toml")]
    result = CliRunner().invoke(app, words)
    if result.exception is not None:
        raise result.exception
    return result.stdout


async def rows(data_dir: Path) -> tuple[QuotaRow, ...]:
    async with open_store(Config(data_dir=data_dir)) as (store, _):
        return await store.quotas.list_quotas()


def test_what_is_set_adds_up_and_is_cleared(data_dir: Path):
    quotas = ("admin", "quotas")
    admin(*quotas, "set", "alice", "--live-runs", "3", "--tokens-per-s", "unlimited", data_dir=data_dir)
    admin(*quotas, "set", "alice", "--weight", "2", "--live-runs", "4", data_dir=data_dir)
    admin(*quotas, "set", "alice", "--project", "p", "--stored-bytes", "1e9", data_dir=data_dir)
    assert asyncio.run(rows(data_dir)) == (
        QuotaRow("alice", "", Limits(live_runs=4, tokens_per_s=math.inf), NOW, 2.0),
        QuotaRow("alice", "p", Limits(stored_bytes=1e9), NOW),
    )
    shown = json.loads(admin(*quotas, "show", "--json", data_dir=data_dir, config="[quotas]\nlive_runs = 9\n"))
    assert [(line["tenant"], line["project"], line["quota"], line["limit"], line["used"]) for line in shown] == [
        ("alice", None, "live_runs", 4, 1),
        ("alice", None, "tokens_per_s", "unlimited", None),
        ("alice", None, "weight", 2.0, None),
        ("alice", "p", "stored_bytes", 1_000_000_000, 0),
        ("bob", None, "live_runs", 9, 1),
    ]
    assert "1000000000" in admin(*quotas, "show", "alice", data_dir=data_dir)
    admin(*quotas, "set", "alice", "--live-runs", "default", "--weight", "default", data_dir=data_dir)
    assert asyncio.run(rows(data_dir))[0] == QuotaRow("alice", "", Limits(tokens_per_s=math.inf), NOW)
    admin(*quotas, "clear", "alice", data_dir=data_dir)
    assert [row.project_id for row in asyncio.run(rows(data_dir))] == ["p"]
    with pytest.raises(NotFound):
        admin(*quotas, "clear", "alice", data_dir=data_dir)


@pytest.mark.parametrize(
    "arguments",
    [
        ("alice",),
        ("alice", "--project", "p", "--weight", "2"),
        ("alice", "--project", "nowhere", "--live-runs", "2"),
        ("alice", "--live-runs", "-1"),
        ("alice", "--live-runs", "many"),
        ("alice", "--tokens-per-s", "0"),
        ("alice", "--running-requests", "0"),
        ("alice", "--stored-bytes", "nan"),
    ],
)
def test_what_cannot_be_set_is_refused(data_dir: Path, arguments: tuple[str, ...]):
    with pytest.raises(InvalidRequest):
        admin("admin", "quotas", "set", *arguments, data_dir=data_dir)
    assert asyncio.run(rows(data_dir)) == ()


def test_a_limit_is_a_number_or_a_word():
    assert (read_limit("stored_bytes", "1e3"), read_limit("live_runs", "0")) == (1000.0, 0.0)
    assert read_limit("gpu_seconds_day", "default") is None
    with pytest.raises(BadValue):
        read_limit("weight", "unlimited")


@pytest.mark.parametrize("by", ["tenant", "project", "run"])
def test_usage_is_told_with_what_it_costs(data_dir: Path, by: str):
    rates = "[gateway.rates]\ntraining = 3.0\nsample = 4.0\ngpu_second = 0.5\n"
    told = json.loads(admin("admin", "usage", "--by", by, "--json", data_dir=data_dir, config=rates))
    total = {"gpu_seconds": 3.0, "training_tokens": 1_000_000, "sampling_tokens": 500_000, "cost_usd": 6.5}
    if by == "run":
        costs = {line["run"]: (line["gpu_seconds"], line["cost_usd"]) for line in told}
        assert costs == {"alice-r": (2.0, 4.0), "alice-s (no run)": (1.0, 2.5)}
    else:
        assert [{name: line[name] for name in total} for line in told] == [total]
        assert told[0][by] == {"tenant": "alice", "project": "p"}[by]
    assert "gpu_seconds" in admin("admin", "usage", "--by", by, data_dir=data_dir, config=rates)


def test_runs_are_listed_with_their_device_time(data_dir: Path):
    listed = json.loads(admin("runs", "--json", data_dir=data_dir, config="[gateway.rates]\ngpu_second = 0.5\n"))
    assert {row["run_id"]: (row["gpu_seconds"], row["cost_usd"]) for row in listed} == {
        "alice-r": (2.0, 1.0),
        "bob-r": (0.0, None),
    }
