"""SQL of sampling sessions."""

from sqlalchemy import Connection, update

from openrl.errors import NotFound
from openrl.store.base import SamplerRow
from openrl.store.rows import first_row, one_row, plain_values, rows_of, select_rows
from openrl.store.schema import samplers


def create_sampler(connection: Connection, sampler: SamplerRow) -> SamplerRow:
    """The sampler as stored: the first one with the same session and number."""
    query = select_rows(SamplerRow).where(
        samplers.c.tenant_id == sampler.tenant_id,
        samplers.c.session_id == sampler.session_id,
        samplers.c.sampling_session_seq_id == sampler.sampling_session_seq_id,
    )
    found = first_row(connection, SamplerRow, query)
    if found is not None:
        return found
    connection.execute(samplers.insert(), plain_values(sampler))
    return sampler


def get_sampler(connection: Connection, tenant_id: str, sampler_id: str) -> SamplerRow:
    """One sampler of a tenant."""
    query = select_rows(SamplerRow).where(samplers.c.sampler_id == sampler_id, samplers.c.tenant_id == tenant_id)
    return one_row(connection, SamplerRow, query, "sampling session", sampler_id)


def join_sampler(connection: Connection, tenant_id: str, sampler_id: str) -> int:
    """The next number of a client."""
    joining = update(samplers).where(samplers.c.sampler_id == sampler_id, samplers.c.tenant_id == tenant_id)
    counted = joining.values(num_joined=samplers.c.num_joined + 1).returning(samplers.c.num_joined)
    number = connection.scalar(counted)
    if number is None:
        raise NotFound.of("sampling session", sampler_id)
    return number


def samplers_of_session(connection: Connection, tenant_id: str, session_id: str) -> tuple[SamplerRow, ...]:
    """Samplers that a session created, in its own order."""
    query = select_rows(SamplerRow).where(samplers.c.tenant_id == tenant_id, samplers.c.session_id == session_id)
    return rows_of(connection, SamplerRow, query.order_by(samplers.c.sampling_session_seq_id))
