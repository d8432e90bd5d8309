"""SQL of users, and who among them an identity provider's token stands for."""

from dataclasses import replace
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from sqlalchemy import ColumnElement, Connection, Select, and_, or_, select, update

from openrl.errors import InvalidRequest, Unauthorized
from openrl.store import audit
from openrl.store.identities import Actor, Identity, Role, SignIn, TenantRow, UserRow, lesser_role
from openrl.store.ledger import AuditEntry
from openrl.store.rows import first_row, one_row, plain_values, rows_of, select_rows
from openrl.store.schema import users
from openrl.store.tenants import create_tenant, is_disabled, tenant_named

DEFAULT_ROLE: Role = "member"
"""Of users that are made when they first sign in, unless their token says less or more."""


def user_name(user_id: str) -> str:
    """A user as clients and the audit log name it."""
    return f"tml:user:{user_id}"


def user_entry(user: UserRow, action: str, now: float, by: Actor) -> AuditEntry:
    """What the audit log says when something is done to a user."""
    about = {"user_id": user.user_id, "email": user.email, "role": user.role}
    return AuditEntry(now, "organizations", f"user_{action}", {**about, **by.details()})


def name_taken(user: UserRow) -> InvalidRequest:
    """The refusal of a second user with the same address or subject."""
    name = user.email or user.subject
    return InvalidRequest(
        f"the tenant has a user {name!r} already", "name_taken", value=name, bound="an address and subject of nobody"
    )


def check_named(user: UserRow) -> None:
    """Raises InvalidRequest for a user that nobody could recognise."""
    if not user.email and not user.subject:
        raise InvalidRequest("a user needs an email address, a subject, or both", "missing")


def add_user(connection: Connection, user: UserRow, by: Actor) -> UserRow:
    """Add a user whose address and subject nobody of the tenant has."""
    check_named(user)
    names = [column == name for column, name in ((users.c.email, user.email), (users.c.subject, user.subject)) if name]
    taken = select(users.c.user_id).where(users.c.tenant_id == user.tenant_id, or_(*names)).limit(1)
    if connection.scalar(taken) is not None:
        raise name_taken(user)
    connection.execute(users.insert(), plain_values(user))
    audit.record(connection, user.tenant_id, user_entry(user, "create", user.created_at, by))
    return user


def get_user(connection: Connection, tenant_id: str, user_id: str) -> UserRow:
    """One user of a tenant."""
    query = select_rows(UserRow).where(_is(tenant_id, user_id))
    return one_row(connection, UserRow, query, "user", user_id)


def list_users(connection: Connection, tenant_id: str) -> tuple[UserRow, ...]:
    """Users of a tenant, oldest first."""
    query = select_rows(UserRow).where(users.c.tenant_id == tenant_id)
    return rows_of(connection, UserRow, query.order_by(users.c.created_at, users.c.user_id))


def update_user(
    connection: Connection,
    tenant_id: str,
    user_id: str,
    now: float,
    by: Actor,
    role: Role | None,
    disable: bool | None,
) -> UserRow:
    """Change a user of a tenant; returns it as it is then."""
    user = get_user(connection, tenant_id, user_id)
    for changed, action in user_changes(user, role, disable, now):
        values = {"role": changed.role, "disabled_at": changed.disabled_at}
        connection.execute(update(users).where(_is(tenant_id, user_id)).values(values))
        audit.record(connection, tenant_id, user_entry(changed, action, now, by))
        user = changed
    return user


def user_changes(user: UserRow, role: Role | None, disable: bool | None, now: float) -> tuple[tuple[UserRow, str], ...]:
    """The user after each thing that is changed, and what the audit log calls it."""
    changes: list[tuple[UserRow, str]] = []
    if role is not None and role != user.role:
        user = replace(user, role=role)
        changes.append((user, "role_set"))
    if disable is not None and disable != (user.disabled_at is not None):
        user = replace(user, disabled_at=now if disable else None)
        changes.append((user, "disable" if disable else "enable"))
    return tuple(changes)


def identity_of_user(connection: Connection, tenant_id: str, user_id: str) -> Identity:
    """A user that may come in."""
    user = first_row(connection, UserRow, select_rows(UserRow).where(_is(tenant_id, user_id)))
    if user is None:
        raise Unauthorized("the user of this token is no more")
    return identity_of(user, is_disabled(connection, tenant_id))


def known_identity(connection: Connection, sign_in: SignIn) -> Identity | None:
    """Who has the token's subject; None if nobody has it yet."""
    tenant = tenant_named(connection, sign_in.tenant_name)
    if tenant is None:
        return None
    user = first_row(connection, UserRow, _of(tenant, users.c.subject == sign_in.subject))
    return None if user is None else identity_of(user, tenant.disabled_at is not None, sign_in.role)


def enrol(connection: Connection, sign_in: SignIn, now: float, may_create: bool) -> Identity:
    """Give the subject to the user that waits for it, or make a user; raises Unauthorized."""
    known = known_identity(connection, sign_in)
    if known is not None:  # another sign-in came first
        return known
    tenant = tenant_named(connection, sign_in.tenant_name)
    if tenant is None and may_create:
        tenant = create_tenant(connection, new_tenant(sign_in, now), new_actor(sign_in))
    if tenant is None:
        raise unknown(sign_in)
    user = _waiting(connection, tenant, sign_in)
    if user is not None:
        user = replace(user, subject=sign_in.subject)
        at = update(users).where(_is(tenant.tenant_id, user.user_id))
        connection.execute(at.values(subject=sign_in.subject))
        audit.record(connection, tenant.tenant_id, user_entry(user, "enrol", now, new_actor(sign_in)))
    elif may_create:
        user = add_user(connection, new_user(tenant, sign_in, now), new_actor(sign_in))
    else:
        raise unknown(sign_in)
    return identity_of(user, tenant.disabled_at is not None, sign_in.role)


def identity_of(user: UserRow, is_tenant_disabled: bool, role: Role | None = None) -> Identity:
    """The user with at most the role; raises Unauthorized for one that is disabled."""
    if is_tenant_disabled or user.disabled_at is not None:
        raise Unauthorized("this user, or its tenant, is disabled")
    return Identity(user.tenant_id, user.user_id, lesser_role(user.role, role or user.role), None, "")


def waits_for(user: UserRow, sign_in: SignIn) -> bool:
    """Whether the user was added by its address, which the identity provider has verified, and never signed in."""
    return not user.subject and sign_in.is_email_verified and user.email == sign_in.email != ""


def unknown(sign_in: SignIn) -> Unauthorized:
    """The refusal of a good token whose user was never added."""
    return Unauthorized(
        f"tenant {sign_in.tenant_name!r} with user {sign_in.email or sign_in.subject!r} is not known here; "
        "an admin adds it with `openrl admin users add`"
    )


def new_tenant(sign_in: SignIn, now: float) -> TenantRow:
    """A tenant made at first sight; its id follows from its name, so that it is made once."""
    return TenantRow(uuid5(NAMESPACE_URL, f"openrl:tenant:{sign_in.tenant_name}").hex, sign_in.tenant_name, now)


def new_user(tenant: TenantRow, sign_in: SignIn, now: float) -> UserRow:
    """A user made at first sight; an address that is not verified is not kept."""
    return UserRow(
        user_id=uuid5(NAMESPACE_URL, f"openrl:user:{tenant.tenant_id}:{sign_in.subject}").hex,
        tenant_id=tenant.tenant_id,
        role=sign_in.role or DEFAULT_ROLE,
        created_at=now,
        email=sign_in.email if sign_in.is_email_verified else "",
        subject=sign_in.subject,
        display_name=sign_in.display_name,
    )


def new_actor(sign_in: SignIn) -> Actor:
    """Who makes tenants and users at first sight: they themselves."""
    return Actor(f"oidc:{sign_in.subject}")


def _waiting(connection: Connection, tenant: TenantRow, sign_in: SignIn) -> UserRow | None:
    if not sign_in.is_email_verified or not sign_in.email:
        return None
    return first_row(connection, UserRow, _of(tenant, and_(users.c.email == sign_in.email, users.c.subject == "")))


def _of(tenant: TenantRow, condition: ColumnElement[bool]) -> Select[Any]:
    return select_rows(UserRow).where(users.c.tenant_id == tenant.tenant_id, condition)


def _is(tenant_id: str, user_id: str) -> ColumnElement[bool]:
    return and_(users.c.tenant_id == tenant_id, users.c.user_id == user_id)
