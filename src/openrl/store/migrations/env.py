"""What Alembic runs: migrates over the connection that `engines.py` hands in, inside its transaction."""

from alembic import context

from openrl.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,  # SQLite changes a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
