"""SQL of API keys."""

from dataclasses import dataclass, replace

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select, update

from openrl.errors import InvalidRequest, Unauthorized
from openrl.store import audit, projects
from openrl.store.identities import SHOWN_HASH, Actor, ApiKeyRow, Identity, UserRow, lesser_role
from openrl.store.ledger import AuditEntry
from openrl.store.rows import first_row, one_row, plain_values, rows_of, select_rows
from openrl.store.schema import api_keys
from openrl.store.tenants import is_disabled
from openrl.store.users import get_user

USE_INTERVAL_S = 60.0
"""Uses of a key that follow each other sooner are not noted."""


@dataclass(frozen=True, slots=True)
class KnownKey:
    """Who a key stands for, and until when."""

    identity: Identity
    expires_at: float | None


def key_entry(key: ApiKeyRow, action: str, now: float, by: Actor) -> AuditEntry:
    """What the audit log says when something is done to a key."""
    return AuditEntry(now, "organizations", f"api_key_{action}", {**key_details(key), **by.details()})


def key_details(key: ApiKeyRow) -> dict[str, str]:
    """What the audit log says of a key."""
    bound = {"user_id": key.user_id, "project_id": key.project_id, "replaced_by": key.replaced_by}
    told = {name: value for name, value in bound.items() if value}
    return {"key_hash": key.key_id, "label": key.label, "role": key.role, **told}


def check_key(key: ApiKeyRow, user: UserRow | None) -> None:
    """Raises InvalidRequest for more rights than a key may have."""
    if user is not None and lesser_role(key.role, user.role) != key.role:
        raise InvalidRequest(
            f"the key's role would be {key.role}, its user's is {user.role}",
            "out_of_range",
            value=key.role,
            bound=f"at most {user.role}",
        )
    if key.project_id is not None and key.role == "admin":
        raise InvalidRequest(
            "a key of one project cannot be an admin's",
            "out_of_range",
            value=key.role,
            bound="member or reader for a key with a project",
        )


def not_valid() -> Unauthorized:
    """What the holder of a key that opens nothing is told."""
    return Unauthorized("the API key is not valid: unknown here, revoked or expired; `openrl keys` makes keys")


def add_api_key(connection: Connection, key: ApiKeyRow, by: Actor) -> None:
    """Add a key; a key that is there already stays as it is, revoked or not."""
    same = select(api_keys.c.key_hash, api_keys.c.tenant_id).where(_has_id(key.key_id))
    found = connection.execute(same).first()
    if found is None:
        check_key(key, get_user(connection, key.tenant_id, key.user_id) if key.user_id else None)
        if key.project_id is not None:
            projects.have_project(connection, key.tenant_id, key.project_id, key.created_at)
        connection.execute(api_keys.insert(), plain_values(key))
        audit.record(connection, key.tenant_id, key_entry(key, "create", key.created_at, by))
    elif (found.key_hash, found.tenant_id) != (key.key_hash, key.tenant_id):
        raise InvalidRequest("this API key belongs to another tenant")


def list_api_keys(connection: Connection, tenant_id: str) -> tuple[ApiKeyRow, ...]:
    """Keys of one tenant, oldest first."""
    query = select_rows(ApiKeyRow).where(api_keys.c.tenant_id == tenant_id)
    return rows_of(connection, ApiKeyRow, query.order_by(api_keys.c.created_at, api_keys.c.key_hash))


def revoke_api_key(connection: Connection, tenant_id: str, key_id: str, now: float, by: Actor) -> ApiKeyRow:
    """Revoke a key of a tenant; the first revocation counts."""
    key = _owned(connection, tenant_id, key_id)
    if key.revoked_at is not None:
        return key
    connection.execute(update(api_keys).where(_is(tenant_id, key_id)).values(revoked_at=now))
    audit.record(connection, tenant_id, key_entry(key, "revoke", now, by))
    return replace(key, revoked_at=now)


def rotate_api_key(
    connection: Connection, tenant_id: str, key_id: str, new_hash: str, overlap_s: float, now: float, by: Actor
) -> ApiKeyRow:
    """Add a key in place of one that ends after the overlap."""
    old, new = rotated(_owned(connection, tenant_id, key_id), new_hash, overlap_s, now)
    ending = update(api_keys).where(_is(tenant_id, key_id))
    connection.execute(ending.values(expires_at=old.expires_at, replaced_by=old.replaced_by))
    connection.execute(api_keys.insert(), plain_values(new))
    audit.record(connection, tenant_id, key_entry(old, "rotate", now, by))
    return new


def rotated(key: ApiKeyRow, new_hash: str, overlap_s: float, now: float) -> tuple[ApiKeyRow, ApiKeyRow]:
    """The key as it goes on for a while, and its replacement, which lasts as long as the key was made to last."""
    if key.revoked_at is not None or key.replaced_by is not None or _is_over(key, now):
        message = f"key {key.key_id} is revoked, expired or replaced already; make a new one"
        raise InvalidRequest(message, "wrong_kind", value=key.key_id, bound="a key that is valid and not replaced")
    new = replace(
        key,
        key_hash=new_hash,
        created_at=now,
        last_used_at=None,
        expires_at=None if key.expires_at is None else now + key.expires_at - key.created_at,
    )
    end = now + overlap_s
    ends_at = end if key.expires_at is None else min(end, key.expires_at)
    return replace(key, expires_at=ends_at, replaced_by=new.key_id), new


def known_key(connection: Connection, key_hash: str) -> KnownKey:
    """Who a key stands for, whether or not it has expired; raises Unauthorized."""
    query = select_rows(ApiKeyRow).where(api_keys.c.key_hash == key_hash, api_keys.c.revoked_at.is_(None))
    key = first_row(connection, ApiKeyRow, query)
    if key is None:
        raise not_valid()
    user = get_user(connection, key.tenant_id, key.user_id) if key.user_id else None
    return known(key, user, is_disabled(connection, key.tenant_id))


def known(key: ApiKeyRow, user: UserRow | None, is_tenant_disabled: bool) -> KnownKey:
    """The key that is not revoked with the role that its user leaves it; raises Unauthorized."""
    if is_tenant_disabled or (user is not None and user.disabled_at is not None):
        raise Unauthorized("the tenant or the user of this API key is disabled")
    role = key.role if user is None else lesser_role(key.role, user.role)
    return KnownKey(Identity(key.tenant_id, key.user_id, role, key.project_id, key.key_id), key.expires_at)


def identity_at(key: KnownKey, now: float) -> Identity:
    """Who the key stands for; raises Unauthorized once it has expired."""
    if key.expires_at is not None and key.expires_at <= now:
        raise not_valid()
    return key.identity


def note_use(connection: Connection, key_hash: str, now: float) -> None:
    """Note that a key was used, unless another process has just done so."""
    is_old = or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at <= now - USE_INTERVAL_S)
    connection.execute(update(api_keys).where(api_keys.c.key_hash == key_hash, is_old).values(last_used_at=now))


def _owned(connection: Connection, tenant_id: str, key_id: str) -> ApiKeyRow:
    query = select_rows(ApiKeyRow).where(_is(tenant_id, key_id))
    return one_row(connection, ApiKeyRow, query, "API key", key_id)


def _is(tenant_id: str, key_id: str) -> ColumnElement[bool]:
    return and_(api_keys.c.tenant_id == tenant_id, _has_id(key_id))


def _has_id(key_id: str) -> ColumnElement[bool]:
    return func.substr(api_keys.c.key_hash, 1, SHOWN_HASH) == key_id


def _is_over(key: ApiKeyRow, now: float) -> bool:
    return key.expires_at is not None and key.expires_at <= now
