"""SQL of tenants and their keys."""

from sqlalchemy import Connection, select, update

from openrl.errors import InvalidRequest, NotFound, Unauthorized
from openrl.store import audit
from openrl.store.base import ApiKeyRow, TenantRow
from openrl.store.ledger import AuditEntry
from openrl.store.rows import first_row, plain_values, rows_of, select_rows
from openrl.store.schema import api_keys, tenants

_SHOWN_HASH = 12  # characters: enough to tell keys apart


def key_details(key: ApiKeyRow) -> dict[str, str]:
    """What the audit log says of a key."""
    return {"key_hash": key.key_hash[:_SHOWN_HASH], "label": key.label}


def create_tenant(connection: Connection, tenant: TenantRow) -> TenantRow:
    """The tenant as stored: the first one if its id is taken."""
    found = first_row(connection, TenantRow, select_rows(TenantRow).where(tenants.c.tenant_id == tenant.tenant_id))
    if found is not None:
        return found
    connection.execute(tenants.insert(), plain_values(tenant))
    return tenant


def list_tenants(connection: Connection) -> tuple[TenantRow, ...]:
    """All tenants, oldest first."""
    return rows_of(connection, TenantRow, select_rows(TenantRow).order_by(tenants.c.created_at, tenants.c.tenant_id))


def add_api_key(connection: Connection, key: ApiKeyRow) -> None:
    """Add a key; a key that is there already stays as it is, revoked or not."""
    owner = connection.scalar(select(api_keys.c.tenant_id).where(api_keys.c.key_hash == key.key_hash))
    if owner is None:
        connection.execute(api_keys.insert(), plain_values(key))
        entry = AuditEntry(key.created_at, "organizations", "api_key_create", key_details(key))
        audit.record(connection, key.tenant_id, entry)
    elif owner != key.tenant_id:
        raise InvalidRequest("this API key belongs to another tenant")


def list_api_keys(connection: Connection, tenant_id: str | None) -> tuple[ApiKeyRow, ...]:
    """Keys of one tenant or of all, oldest first."""
    query = select_rows(ApiKeyRow).order_by(api_keys.c.created_at, api_keys.c.key_hash)
    if tenant_id is not None:
        query = query.where(api_keys.c.tenant_id == tenant_id)
    return rows_of(connection, ApiKeyRow, query)


def revoke_api_key(connection: Connection, key_hash: str, now: float) -> None:
    """Revoke a key; the first revocation counts."""
    key = first_row(connection, ApiKeyRow, select_rows(ApiKeyRow).where(api_keys.c.key_hash == key_hash))
    if key is None:
        raise NotFound("this API key does not exist")
    if key.revoked_at is None:
        connection.execute(update(api_keys).where(api_keys.c.key_hash == key_hash).values(revoked_at=now))
        audit.record(connection, key.tenant_id, AuditEntry(now, "organizations", "api_key_revoke", key_details(key)))


def tenant_of_key(connection: Connection, key_hash: str) -> str:
    """The tenant of a key that is not revoked."""
    owner = connection.scalar(
        select(api_keys.c.tenant_id).where(api_keys.c.key_hash == key_hash, api_keys.c.revoked_at.is_(None))
    )
    if owner is None:
        raise Unauthorized("the API key is not valid: unknown here, or revoked; `openrl keys` makes keys")
    return str(owner)
