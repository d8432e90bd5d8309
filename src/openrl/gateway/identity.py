"""How tenants and users are named towards clients. What no user made or owns is the tenant's: it is its own user."""

from openrl.store.identities import Actor, Identity


def user_urn(user_id: str) -> str:
    """A user, or a tenant in the place of one: owner of sessions, subject of tokens."""
    return f"tml:user:{user_id}"


def urn_of(identity: Identity) -> str:
    """Who a credential stands for."""
    return user_urn(identity.user_id or identity.tenant_id)


def actor_of(identity: Identity) -> Actor:
    """The same, for the audit log."""
    return Actor(urn_of(identity), identity.key_id)
