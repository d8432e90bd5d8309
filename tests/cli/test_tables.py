import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from openrl.cli.data_dir import open_store
from openrl.cli.main import app
from openrl.cli.tables import print_table
from openrl.config import Config
from openrl.store.base import TenantRow
from openrl.store.identities import OPERATOR
from tests.store.rows_for_tests import ALICE, BOB, request, run, session

RUN_IDS = {tenant: f"{tenant}-0123456-7890-abcd-ef01-23456789abcd:train:0" for tenant in (ALICE, BOB)}


async def make_runs(data_dir: Path) -> None:
    async with open_store(Config(data_dir=data_dir)) as (store, _):
        for tenant, run_id in RUN_IDS.items():
            await store.identities.create_tenant(TenantRow(tenant, tenant, 0.0), OPERATOR)
            await store.create_session(session(f"{run_id}-session", tenant, project_id=f"{tenant}-{'p' * 60}"))
            await store.create_run(run(run_id, tenant), request(run_id, 0, tenant), b"p")


@pytest.mark.parametrize("columns", ["40", "80", "300"])
def test_ids_are_whole_in_the_first_column_however_narrow_the_terminal_is(tmp_path: Path, columns: str):
    asyncio.run(make_runs(tmp_path))
    for command, ids in (("runs", RUN_IDS.values()), ("projects", (f"{each}-{'p' * 60}" for each in RUN_IDS))):
        result = CliRunner().invoke(app, [command, "--data-dir", str(tmp_path)], env={"COLUMNS": columns})
        assert result.exit_code == 0
        assert {line.split()[0] for line in result.output.splitlines()[1:]} >= set(ids)
    only = CliRunner().invoke(app, ["runs", "--tenant", BOB, "--data-dir", str(tmp_path)], env={"COLUMNS": columns})
    assert [line.split()[0] for line in only.output.splitlines()[1:]] == [RUN_IDS[BOB]]


def test_cells_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]):
    print_table(("label", "n"), [("[red]x[/red]", 1), ("", 22)])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["label         n", "[red]x[/red]  1", "              22"]
