"""Says which schemas this version's code runs on, and brings a database to its own.

A revision is named by its number ("0011"), or by its number and the oldest revision whose code runs on it
("0012_from_0011"): that is all that older code, which does not have the newer steps, can know of it. A step that only
adds what older code leaves alone names the oldest such revision; one that takes something away names itself.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

MIGRATIONS = Path(__file__).parent / "migrations"
Fit = Literal["same", "older", "newer", "too_new"]
_NAMED = re.compile(r"\d{4}_from_(\d{4})")


@dataclass(frozen=True, slots=True)
class Schema:
    """What a database has, beside what this code was made for; `revision` is empty where there are no tables."""

    revision: str
    wanted: str

    def fit(self, known: frozenset[str]) -> Fit:
        """Whether the code that knows these revisions runs on it: "newer" does, "older" has to be migrated."""
        if self.revision == self.wanted:
            return "same"
        if not self.revision or self.revision in known:
            return "older"
        named = _NAMED.fullmatch(self.revision)
        return "newer" if named is not None and named[1] <= self.wanted[:4] else "too_new"


def read_schema(connection: Connection, migrations: Path = MIGRATIONS) -> tuple[Schema, Fit]:
    """The schema of a database, and how it fits; nothing is changed."""
    script = ScriptDirectory.from_config(_config(migrations))
    found = MigrationContext.configure(connection).get_current_revision()
    schema = Schema(found or "", script.get_current_head() or "")
    known = frozenset(step.revision for step in script.walk_revisions())
    return schema, schema.fit(known)


def upgrade(connection: Connection, migrations: Path = MIGRATIONS) -> None:
    """Take every step that is missing."""
    config = _config(migrations)
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _config(migrations: Path) -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    return config
