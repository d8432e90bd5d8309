"""How a tenant is named towards clients that know users and organizations: here one tenant is both."""


def user_urn(tenant_id: str) -> str:
    """The tenant as a user: owner of sessions, subject of tokens."""
    return f"tml:user:{tenant_id}"
