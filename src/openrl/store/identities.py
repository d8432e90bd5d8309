"""The contract of who there is: tenants, their users, and the credentials that stand for them.

The rules of `Store` hold. Every change is in the audit log, with the `Actor` who made it. What makes a credential
void (revocation, a disabled user or tenant, a role that was lowered) counts at once in this process, and within
seconds in others.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from openrl.protocol.runs import CheckpointKind

Role = Literal["admin", "member", "reader"]
ROLES: tuple[Role, ...] = ("reader", "member", "admin")
"""Each may do what those before it may."""
SHOWN_HASH = 12
"""Characters of a hash that name a key or a share to people."""


@dataclass(frozen=True, slots=True)
class TenantRow:
    """Who owns data and quota."""

    tenant_id: str
    name: str
    created_at: float
    disabled_at: float | None = None  # none of its credentials opens anything


@dataclass(frozen=True, slots=True)
class UserRow:
    """A person, or a program, of one tenant. `subject` is who an identity provider says it is, "" if nobody did yet."""

    user_id: str
    tenant_id: str
    role: Role
    created_at: float
    email: str = ""
    subject: str = ""
    display_name: str = ""
    disabled_at: float | None = None


@dataclass(frozen=True, slots=True)
class ApiKeyRow:
    """A credential; only the SHA-256 of the key is kept. A key without a user is the tenant's own."""

    key_hash: str
    tenant_id: str
    label: str
    created_at: float
    revoked_at: float | None = None
    role: Role = "admin"  # at most: the user's role bounds it as well
    user_id: str = ""
    project_id: str | None = None  # it sees and makes only what belongs to sessions of this project
    expires_at: float | None = None
    last_used_at: float | None = None  # to a minute
    replaced_by: str | None = None  # id of the key that a rotation made

    @property
    def key_id(self) -> str:
        """Names the key to people: the beginning of its hash."""
        return self.key_hash[:SHOWN_HASH]


@dataclass(frozen=True, slots=True)
class ShareRow:
    """A token that lets its holder read one checkpoint; only its SHA-256 is kept."""

    token_hash: str
    tenant_id: str
    run_id: str
    kind: CheckpointKind
    name: str
    created_at: float
    expires_at: float
    label: str = ""
    revoked_at: float | None = None

    @property
    def share_id(self) -> str:
        """Names the share to people: the beginning of its hash."""
        return self.token_hash[:SHOWN_HASH]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a credential stands for, and what it may do."""

    tenant_id: str
    user_id: str  # "": the tenant itself
    role: Role
    project_id: str | None  # the only project whose things it sees and makes
    key_id: str  # "": signed in by an identity provider


@dataclass(frozen=True, slots=True)
class Actor:
    """Who made a change, for the audit log."""

    name: str
    key_id: str = ""

    def details(self) -> dict[str, str]:
        """What the audit log says of it."""
        return {"actor": self.name} | ({"actor_key_id": self.key_id} if self.key_id else {})


OPERATOR = Actor("operator")
"""Whoever runs the command line beside the database."""


@dataclass(frozen=True, slots=True)
class SignIn:
    """What a token of the identity provider says of its holder, checked."""

    tenant_name: str
    subject: str
    role: Role | None = None  # at most
    email: str = ""
    is_email_verified: bool = False
    display_name: str = ""


def lesser_role(first: Role, second: Role) -> Role:
    """The role that may do less."""
    return first if ROLES.index(first) < ROLES.index(second) else second


class TenantIdentities(Protocol):
    """What the gateway may ask and do: every look-up carries the tenant, or the credential itself."""

    async def identity_of_key(self, key_hash: str, now: float) -> Identity:
        """Who a key stands for; raises Unauthorized. Fast: called by every HTTP request."""
        ...

    async def identity_of_user(self, tenant_id: str, user_id: str) -> Identity:
        """The user, with its whole role; raises Unauthorized when it or its tenant is gone or disabled. Fast."""
        ...

    async def sign_in(self, sign_in: SignIn, now: float, *, may_create: bool = False) -> Identity:
        """The user with this subject, or the one that waits for this verified address and has no subject yet.

        Raises Unauthorized when there is none and none may be created. Fast for known users.
        """
        ...

    async def get_tenant(self, tenant_id: str) -> TenantRow: ...
    async def add_user(self, user: UserRow, by: Actor) -> UserRow:
        """Raises InvalidRequest when the tenant has a user with this address or subject."""
        ...

    async def get_user(self, tenant_id: str, user_id: str) -> UserRow: ...
    async def list_users(self, tenant_id: str) -> tuple[UserRow, ...]: ...
    async def update_user(
        self,
        tenant_id: str,
        user_id: str,
        now: float,
        by: Actor,
        *,
        role: Role | None = None,
        is_disabled: bool | None = None,
    ) -> UserRow:
        """Change what is not None."""
        ...

    async def add_api_key(self, key: ApiKeyRow, by: Actor) -> None:
        """A key that is there already stays as it is. Its project comes into being; its user must be the tenant's.

        Raises InvalidRequest for a role that is more than the user's, and for an admin's key with a project.
        """
        ...

    async def list_api_keys(self, tenant_id: str) -> tuple[ApiKeyRow, ...]:
        """Of one tenant, oldest first."""
        ...

    async def rotate_api_key(
        self, tenant_id: str, key_id: str, new_hash: str, overlap_s: float, now: float, by: Actor
    ) -> ApiKeyRow:
        """A new key that may do the same for as long; the old one goes on for `overlap_s`, if it lasts that long.

        Raises InvalidRequest for a key that opens nothing any more, or has been replaced already.
        """
        ...

    async def revoke_api_key(self, tenant_id: str, key_id: str, now: float, by: Actor) -> ApiKeyRow:
        """The first revocation counts."""
        ...


class Identities(TenantIdentities, Protocol):
    """What the operator asks and does besides, over all tenants; the gateway calls none of it."""

    async def create_tenant(self, tenant: TenantRow, by: Actor) -> TenantRow:
        """The first one if its id is taken."""
        ...

    async def list_tenants(self) -> tuple[TenantRow, ...]: ...
    async def set_tenant_disabled(self, tenant_id: str, is_disabled: bool, now: float, by: Actor) -> TenantRow:
        """Disabling it twice keeps the first time."""
        ...
