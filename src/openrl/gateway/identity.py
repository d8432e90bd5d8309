"""How a tenant is named towards clients that know users and organizations: here one tenant is both."""

from openrl.gateway.context import Gateway


def user_urn(tenant_id: str) -> str:
    """The tenant as a user: owner of sessions, subject of tokens."""
    return f"tml:user:{tenant_id}"


async def tenant_name(gateway: Gateway, tenant_id: str) -> str:
    """The name that the tenant was given."""
    tenants = await gateway.store.list_tenants()
    return next((tenant.name for tenant in tenants if tenant.tenant_id == tenant_id), tenant_id)
