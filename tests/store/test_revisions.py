"""Which databases this code runs on: an older one is migrated or waited for, a newer one only if it says so."""

import re
import shutil
from pathlib import Path

import pytest
from sqlalchemy import text

from openrl.errors import Unavailable
from openrl.store.blobs import DirectoryBlobs
from openrl.store.engines import SchemaTooOld, open_engines
from openrl.store.revisions import MIGRATIONS, Schema, read_schema
from openrl.store.sql import create_store
from tests.postgres import PostgresServer, new_database
from tests.store.expectations import refused_as, start_run
from tests.store.rows_for_tests import ALICE, done

STEP = '''"""A step of a later version."""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{before}"


def upgrade() -> None:
    op.add_column("runs", sa.Column("note", sa.String(), nullable=False, server_default=""))
'''
STEPS = sorted((MIGRATIONS / "versions").glob("r*.py"))
KNOWN = frozenset(("0001", "0002", "0003_from_0001"))


@pytest.fixture(params=["sqlite", "postgres"])
def fresh_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables."""
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        return new_database(server)
    return f"sqlite:///{tmp_path}/fresh.db"


def later_version(folder: Path, revision: str) -> Path:
    """The migrations of a version that has one more step."""
    shutil.copytree(MIGRATIONS, folder / "migrations")
    step = STEP.format(revision=revision, before=newest())
    (folder / "migrations" / "versions" / "next.py").write_text(step)
    return folder / "migrations"


def newest() -> str:
    [revision] = re.findall(r'^revision = "(.*)"$', STEPS[-1].read_text(), re.MULTILINE)
    return revision


@pytest.mark.parametrize(
    ("revision", "fit"),
    [
        ("0003_from_0001", "same"),
        ("0002", "older"),
        ("", "older"),
        ("0004_from_0003", "newer"),
        ("0009_from_0001", "newer"),
        ("0004_from_0004", "too_new"),
        ("0004", "too_new"),
        ("strange", "too_new"),
    ],
)
def test_a_revision_says_which_code_runs_on_it(revision: str, fit: str):
    assert Schema(revision, "0003_from_0001").fit(KNOWN) == fit


def test_who_must_not_migrate_is_told_to_wait_until_somebody_has(fresh_url: str):
    with pytest.raises(SchemaTooOld, match=r"has no tables.*openrl migrate"):
        open_engines(fresh_url, migrates=False)
    open_engines(fresh_url).dispose()
    open_engines(fresh_url, migrates=False).dispose()


async def test_code_runs_on_a_newer_schema_that_says_so(fresh_url: str, tmp_path: Path):
    blobs = DirectoryBlobs(tmp_path / "blobs")
    store = await create_store(fresh_url, blobs)
    await start_run(store)
    later = later_version(tmp_path, f"9999_from_{newest()[:4]}")
    with pytest.raises(SchemaTooOld, match=f"schema {newest()}, this version needs 9999"):
        open_engines(fresh_url, migrates=False, migrations=later)
    open_engines(fresh_url, migrations=later).dispose()
    await store.finish([done("alice-r1-0")])  # who has it open goes on
    await store.close()
    for migrates in (True, False):
        again = await create_store(fresh_url, blobs, migrates=migrates)
        assert (await again.get_run(ALICE, "r1")).spec.run_id == "r1"
        with again._engines.reader.begin() as connection:
            assert read_schema(connection)[1] == "newer"
            assert connection.scalar(text("SELECT note FROM runs")) == ""
        await again.close()
    blobs.close()


async def test_code_refuses_a_newer_schema_that_does_not_say_so(fresh_url: str, tmp_path: Path):
    blobs = DirectoryBlobs(tmp_path / "blobs")
    open_engines(fresh_url, migrations=later_version(tmp_path, "9999_from_9999")).dispose()
    error = await refused_as(create_store(fresh_url, blobs), Unavailable)
    assert "9999_from_9999, of a later version" in str(error)
    blobs.close()


def test_every_later_step_says_which_code_runs_on_it():
    names = re.findall(r'^revision = "(.*)"', "\n".join(path.read_text() for path in STEPS), re.MULTILINE)
    assert all(name <= "0011" or re.fullmatch(r"\d{4}_from_\d{4}", name) for name in names), names
