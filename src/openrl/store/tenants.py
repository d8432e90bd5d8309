"""SQL of tenants."""

from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Select, select, update

from openrl.store import audit
from openrl.store.identities import Actor, TenantRow
from openrl.store.ledger import AuditEntry
from openrl.store.rows import first_row, one_row, plain_values, rows_of, select_rows
from openrl.store.schema import tenants


def tenant_entry(tenant: TenantRow, action: str, now: float, by: Actor) -> AuditEntry:
    """What the audit log says when something is done to a tenant."""
    return AuditEntry(now, "organizations", f"tenant_{action}", {"name": tenant.name, **by.details()})


def create_tenant(connection: Connection, tenant: TenantRow, by: Actor) -> TenantRow:
    """The tenant as stored: the first one if its id is taken."""
    found = first_row(connection, TenantRow, _with_id(tenant.tenant_id))
    if found is not None:
        return found
    connection.execute(tenants.insert(), plain_values(tenant))
    audit.record(connection, tenant.tenant_id, tenant_entry(tenant, "create", tenant.created_at, by))
    return tenant


def get_tenant(connection: Connection, tenant_id: str) -> TenantRow:
    """One tenant."""
    return one_row(connection, TenantRow, _with_id(tenant_id), "tenant", tenant_id)


def tenant_named(connection: Connection, name: str) -> TenantRow | None:
    """The oldest tenant of a name."""
    query = select_rows(TenantRow).where(tenants.c.name == name)
    return first_row(connection, TenantRow, query.order_by(tenants.c.created_at, tenants.c.tenant_id))


def is_disabled(connection: Connection, tenant_id: str) -> bool:
    """Whether the tenant's credentials open nothing."""
    return connection.scalar(select(tenants.c.disabled_at).where(tenants.c.tenant_id == tenant_id)) is not None


def list_tenants(connection: Connection) -> tuple[TenantRow, ...]:
    """All tenants, oldest first."""
    return rows_of(connection, TenantRow, select_rows(TenantRow).order_by(tenants.c.created_at, tenants.c.tenant_id))


def set_disabled(connection: Connection, tenant_id: str, disable: bool, now: float, by: Actor) -> TenantRow:
    """Disable a tenant, or let it in again."""
    tenant = one_row(connection, TenantRow, _with_id(tenant_id), "tenant", tenant_id)
    if disable == (tenant.disabled_at is not None):
        return tenant
    changed = replace(tenant, disabled_at=now if disable else None)
    at = update(tenants).where(tenants.c.tenant_id == tenant_id)
    connection.execute(at.values(disabled_at=changed.disabled_at))
    audit.record(connection, tenant_id, tenant_entry(tenant, "disable" if disable else "enable", now, by))
    return changed


def _with_id(tenant_id: str) -> Select[Any]:
    return select_rows(TenantRow).where(tenants.c.tenant_id == tenant_id)
