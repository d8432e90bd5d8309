"""SQL of the audit log."""

from sqlalchemy import Connection, select

from openrl.store.ledger import AuditCategory, AuditEntry
from openrl.store.schema import audit_log


def record(connection: Connection, tenant_id: str, entry: AuditEntry) -> None:
    """Add an entry, in the transaction of what it reports."""
    values = {"created_at": entry.created_at, "category": entry.category, "event": entry.event}
    connection.execute(audit_log.insert().values(tenant_id=tenant_id, details=entry.details, **values))


def list_entries(
    connection: Connection, tenant_id: str, category: AuditCategory | None, since: float, until: float
) -> tuple[AuditEntry, ...]:
    """Entries of a stretch of time, oldest first."""
    query = select(audit_log.c.created_at, audit_log.c.category, audit_log.c.event, audit_log.c.details).where(
        audit_log.c.tenant_id == tenant_id, audit_log.c.created_at >= since, audit_log.c.created_at < until
    )
    if category is not None:
        query = query.where(audit_log.c.category == category)
    rows = connection.execute(query.order_by(audit_log.c.created_at, audit_log.c.entry_id))
    return tuple(AuditEntry(*row) for row in rows)
