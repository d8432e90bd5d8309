"""`openrl migrate`: brings the store to this version's schema."""

import typer

from openrl.cli.data_dir import DataDir, database_url
from openrl.cli.options import ConfigFile, DataDirOption
from openrl.config import load_config
from openrl.errors import Unavailable
from openrl.store.engines import open_engines
from openrl.store.revisions import read_schema


def migrate(data_dir: DataDirOption = None, config_file: ConfigFile = None) -> None:
    """Bring the database to this version's schema, before its processes start; harmless to repeat."""
    config = load_config(config_file, data_dir=data_dir)
    if not config.store.url:
        root = DataDir(config.data_dir).root
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"the data directory {root} cannot be used: {error}") from error
    engines = open_engines(database_url(config))
    try:
        with engines.reader.begin() as connection:
            schema, fit = read_schema(connection)
    finally:
        engines.dispose()
    newer = f"; this version, which was made for {schema.wanted}, runs on it" if fit == "newer" else ""
    typer.echo(f"The store has schema {schema.revision}{newer}.")
