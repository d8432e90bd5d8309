"""SQL of shares: tokens that let their holders read one checkpoint."""

from dataclasses import replace

from sqlalchemy import Connection, and_, func, update

from openrl.errors import NotFound, Unauthorized
from openrl.protocol.paths import CheckpointPath
from openrl.protocol.runs import CheckpointKind
from openrl.store import audit, checkpoints, tenants
from openrl.store.base import CheckpointRow
from openrl.store.identities import SHOWN_HASH, Actor, ShareRow
from openrl.store.ledger import AuditEntry
from openrl.store.rows import first_row, one_row, plain_values, rows_of, select_rows
from openrl.store.runs import runs_of_project
from openrl.store.schema import shares


def share_entry(share: ShareRow, action: str, now: float, by: Actor) -> AuditEntry:
    """What the audit log says when something is done to a share."""
    path = str(CheckpointPath(share.run_id, share.kind, share.name))
    about = {"training_run_id": share.run_id, "tinker_path": path, "share_id": share.share_id, "label": share.label}
    return AuditEntry(now, "checkpoints", f"share_{action}", {**about, **by.details()})


def not_valid() -> Unauthorized:
    """What the holder of a token that opens nothing is told."""
    return Unauthorized("the weights access token is unknown here, revoked or expired")


def check_is_for(share: ShareRow | None, run_id: str, kind: CheckpointKind, name: str, now: float) -> ShareRow:
    """The share, if it is for this checkpoint; raises Unauthorized for one that is over, NotFound."""
    if share is None or share.revoked_at is not None or share.expires_at <= now:
        raise not_valid()
    if (share.run_id, share.kind, share.name) != (run_id, kind, name):
        raise NotFound.of("checkpoint", str(CheckpointPath(run_id, kind, name)))
    return share


def create_share(connection: Connection, share: ShareRow, by: Actor, now: float) -> ShareRow:
    """Add a share of a checkpoint of its tenant's own."""
    checkpoints.own_checkpoint(connection, share.tenant_id, share.run_id, share.kind, share.name, now)
    connection.execute(shares.insert(), plain_values(share))
    audit.record(connection, share.tenant_id, share_entry(share, "create", share.created_at, by))
    return share


def list_shares(connection: Connection, tenant_id: str, project_id: str | None) -> tuple[ShareRow, ...]:
    """Shares of a tenant, newest first; of checkpoints of one project if it is named."""
    query = select_rows(ShareRow).where(shares.c.tenant_id == tenant_id)
    if project_id is not None:
        query = query.where(shares.c.run_id.in_(runs_of_project(tenant_id, project_id)))
    return rows_of(connection, ShareRow, query.order_by(shares.c.created_at.desc(), shares.c.token_hash))


def revoke_share(connection: Connection, tenant_id: str, share_id: str, now: float, by: Actor) -> ShareRow:
    """End a share of a tenant; the first revocation counts."""
    at = and_(shares.c.tenant_id == tenant_id, func.substr(shares.c.token_hash, 1, SHOWN_HASH) == share_id)
    share = one_row(connection, ShareRow, select_rows(ShareRow).where(at), "share", share_id)
    if share.revoked_at is not None:
        return share
    connection.execute(update(shares).where(at).values(revoked_at=now))
    audit.record(connection, tenant_id, share_entry(share, "revoke", now, by))
    return replace(share, revoked_at=now)


def shared_checkpoint(
    connection: Connection, token_hash: str, run_id: str, kind: CheckpointKind, name: str, now: float
) -> CheckpointRow:
    """The checkpoint that the holder of a token may read."""
    found = first_row(connection, ShareRow, select_rows(ShareRow).where(shares.c.token_hash == token_hash))
    share = check_is_for(found, run_id, kind, name, now)
    if tenants.is_disabled(connection, share.tenant_id):
        raise not_valid()
    return checkpoints.own_checkpoint(connection, share.tenant_id, run_id, kind, name, now)
