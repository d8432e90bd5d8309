"""The contract of `store/identities.py`, held in memory and over SQL: two tenants, and two users of one."""

from dataclasses import replace

import pytest

from openrl.errors import InvalidRequest, NotFound, Unauthorized
from openrl.store.base import Store
from openrl.store.identities import OPERATOR, Actor, ApiKeyRow, Identity, SignIn, TenantRow, UserRow
from tests.store.expectations import refused_as
from tests.store.rows_for_tests import ALICE, BOB

NOW = 1000.0
ADA = UserRow("ada", ALICE, "admin", 1.0, "ada@alice.example", "sub-ada", "Ada")
ROY = UserRow("roy", ALICE, "reader", 2.0, "roy@alice.example")
BY = Actor("tml:user:ada", "abc")


@pytest.fixture
async def tenants(store: Store) -> Store:
    for tenant_id in (ALICE, BOB):
        await store.identities.create_tenant(TenantRow(tenant_id, f"{tenant_id} inc", 1.0), OPERATOR)
    for user in (ADA, ROY):
        await store.identities.add_user(user, BY)
    return store


async def tenant_of_key(store: Store, key_hash: str, now: float = NOW) -> str:
    return (await store.identities.identity_of_key(key_hash, now)).tenant_id


# -- tenants
async def test_tenants_are_created_once_and_listed_oldest_first(store: Store):
    first = await store.identities.create_tenant(TenantRow(BOB, "Bob", 2.0), OPERATOR)
    assert await store.identities.create_tenant(TenantRow(BOB, "Robert", 3.0), OPERATOR) == first
    alice = await store.identities.create_tenant(TenantRow(ALICE, "Alice", 1.0), OPERATOR)
    assert await store.identities.list_tenants() == (alice, first)
    assert await store.identities.get_tenant(ALICE) == alice
    await refused_as(store.identities.get_tenant("nobody"), NotFound)


async def test_a_disabled_tenant_is_out_until_it_is_enabled_and_the_other_goes_on(tenants: Store):
    identities = tenants.identities
    await identities.add_api_key(ApiKeyRow("h1", ALICE, "", 1.0), OPERATOR)
    await identities.add_api_key(ApiKeyRow("h2", BOB, "", 1.0), OPERATOR)
    assert await tenant_of_key(tenants, "h1") == ALICE
    assert (await identities.set_tenant_disabled(ALICE, True, 5.0, OPERATOR)).disabled_at == 5.0
    assert (await identities.set_tenant_disabled(ALICE, True, 6.0, OPERATOR)).disabled_at == 5.0
    await refused_as(identities.identity_of_key("h1", NOW), Unauthorized)
    await refused_as(identities.identity_of_user(ALICE, "ada"), Unauthorized)
    await refused_as(identities.sign_in(SignIn("alice inc", "sub-ada"), NOW), Unauthorized)
    assert await tenant_of_key(tenants, "h2") == BOB
    await identities.set_tenant_disabled(ALICE, False, 7.0, OPERATOR)
    assert await tenant_of_key(tenants, "h1") == ALICE


# -- keys
async def test_a_key_opens_the_door_of_its_tenant_until_it_is_revoked(store: Store):
    identities = store.identities
    await identities.add_api_key(ApiKeyRow("h1", ALICE, "laptop", 1.0), OPERATOR)
    await identities.add_api_key(ApiKeyRow("h2", BOB, "laptop", 2.0), OPERATOR)
    assert await identities.identity_of_key("h1", NOW) == Identity(ALICE, "", "admin", None, "h1")
    assert await tenant_of_key(store, "h2") == BOB
    await refused_as(identities.identity_of_key("h3", NOW), Unauthorized)
    assert (await identities.revoke_api_key(ALICE, "h1", 5.0, BY)).revoked_at == 5.0
    assert (await identities.revoke_api_key(ALICE, "h1", 6.0, BY)).revoked_at == 5.0
    await refused_as(identities.identity_of_key("h1", NOW), Unauthorized)
    assert await tenant_of_key(store, "h2") == BOB
    assert [key.revoked_at for key in await identities.list_api_keys(ALICE)] == [5.0]
    assert [key.key_hash for key in await identities.list_api_keys(BOB)] == ["h2"]
    await refused_as(identities.revoke_api_key(ALICE, "h3", 1.0, BY), NotFound)


async def test_another_tenants_key_is_neither_revoked_nor_rotated(store: Store):
    identities = store.identities
    await identities.add_api_key(ApiKeyRow("h1", ALICE, "laptop", 1.0), OPERATOR)
    await refused_as(identities.revoke_api_key(BOB, "h1", 5.0, BY), NotFound)
    await refused_as(identities.rotate_api_key(BOB, "h1", "h2", 0.0, 5.0, BY), NotFound)
    assert await tenant_of_key(store, "h1") == ALICE


async def test_a_key_added_after_it_was_refused_is_accepted(store: Store):
    await refused_as(store.identities.identity_of_key("h1", NOW), Unauthorized)
    await store.identities.add_api_key(ApiKeyRow("h1", ALICE, "laptop", 1.0), OPERATOR)
    assert await tenant_of_key(store, "h1") == ALICE


async def test_a_key_added_twice_stays_as_it_was_and_never_changes_its_tenant(store: Store):
    identities = store.identities
    await identities.add_api_key(ApiKeyRow("h1", ALICE, "laptop", 1.0), OPERATOR)
    await identities.revoke_api_key(ALICE, "h1", 5.0, BY)
    await identities.add_api_key(ApiKeyRow("h1", ALICE, "desktop", 2.0), OPERATOR)
    await refused_as(identities.identity_of_key("h1", NOW), Unauthorized)
    await refused_as(identities.add_api_key(ApiKeyRow("h1", BOB, "stolen", 2.0), OPERATOR), InvalidRequest)
    assert await identities.list_api_keys(ALICE) == (ApiKeyRow("h1", ALICE, "laptop", 1.0, 5.0),)


async def test_two_keys_never_have_the_same_id(store: Store):
    await store.identities.add_api_key(ApiKeyRow("0123456789abX", ALICE, "", 1.0), OPERATOR)
    again = ApiKeyRow("0123456789abY", ALICE, "", 1.0)
    await refused_as(store.identities.add_api_key(again, OPERATOR), InvalidRequest)


async def test_a_key_expires_also_while_it_is_remembered(store: Store):
    await store.identities.add_api_key(ApiKeyRow("h1", ALICE, "", 1.0, expires_at=50.0), OPERATOR)
    assert await tenant_of_key(store, "h1", now=49.9) == ALICE
    await refused_as(store.identities.identity_of_key("h1", 50.0), Unauthorized)


async def test_a_key_may_do_no_more_than_its_user(tenants: Store):
    identities = tenants.identities
    await identities.add_api_key(ApiKeyRow("h1", ALICE, "", 1.0, role="member", user_id="ada"), BY)
    assert await identities.identity_of_key("h1", NOW) == Identity(ALICE, "ada", "member", None, "h1")
    await identities.update_user(ALICE, "ada", 5.0, BY, role="reader")
    assert (await identities.identity_of_key("h1", NOW)).role == "reader"
    await identities.update_user(ALICE, "ada", 6.0, BY, role="admin")
    assert (await identities.identity_of_key("h1", NOW)).role == "member"
    await identities.update_user(ALICE, "ada", 7.0, BY, is_disabled=True)
    await refused_as(identities.identity_of_key("h1", NOW), Unauthorized)
    more = ApiKeyRow("h2", ALICE, "", 1.0, role="member", user_id="roy")
    assert "at most" not in await refused_as(identities.add_api_key(more, BY), InvalidRequest)
    bobs = ApiKeyRow("h3", BOB, "", 1.0, role="reader", user_id="roy")
    await refused_as(identities.add_api_key(bobs, BY), NotFound)


async def test_a_key_of_a_project_is_no_admins_and_makes_the_project(tenants: Store):
    identities = tenants.identities
    await refused_as(identities.add_api_key(ApiKeyRow("h1", ALICE, "", 1.0, project_id="p"), BY), InvalidRequest)
    await identities.add_api_key(ApiKeyRow("h1", ALICE, "", 1.0, role="member", project_id="p"), BY)
    assert (await identities.identity_of_key("h1", NOW)).project_id == "p"
    assert [project.project_id for project in await tenants.ledger.list_projects(ALICE)] == ["p"]
    assert await tenants.ledger.list_projects(BOB) == ()


async def test_a_rotated_key_goes_on_for_a_while_beside_its_replacement(tenants: Store):
    identities = tenants.identities
    old = ApiKeyRow("h1", ALICE, "laptop", 100.0, role="reader", user_id="roy", project_id="p", expires_at=1100.0)
    await identities.add_api_key(old, BY)
    new = await identities.rotate_api_key(ALICE, "h1", "h2", 60.0, 200.0, BY)
    assert new == replace(old, key_hash="h2", created_at=200.0, expires_at=1200.0)
    first, second = await identities.list_api_keys(ALICE)
    assert (first.expires_at, first.replaced_by, second) == (260.0, "h2", new)
    for now, is_open in ((259.0, True), (260.0, False)):
        if is_open:
            assert (await identities.identity_of_key("h1", now)).role == "reader"
        else:
            await refused_as(identities.identity_of_key("h1", now), Unauthorized)
        assert (await identities.identity_of_key("h2", now)).project_id == "p"
    await refused_as(identities.rotate_api_key(ALICE, "h1", "h3", 60.0, 210.0, BY), InvalidRequest)
    late = await identities.rotate_api_key(ALICE, "h2", "h4", 1e9, 1199.0, BY)
    assert late.expires_at == 2199.0
    assert (await identities.list_api_keys(ALICE))[1].expires_at == 1200.0


async def test_the_use_of_a_key_is_noted_once_a_minute(store: Store):
    identities = store.identities
    await identities.add_api_key(ApiKeyRow("h1", ALICE, "", 1.0), OPERATOR)
    await identities.add_api_key(ApiKeyRow("h2", BOB, "", 1.0), OPERATOR)
    for now, noted in ((100.0, 100.0), (159.0, 100.0), (160.0, 160.0)):
        await identities.identity_of_key("h1", now)
        await identities.create_tenant(TenantRow(f"{now}", "after it", now), OPERATOR)  # a commit that comes later
        assert [key.last_used_at for key in await identities.list_api_keys(ALICE)] == [noted]
    assert [key.last_used_at for key in await identities.list_api_keys(BOB)] == [None]


# -- users
async def test_users_are_the_tenants_own(tenants: Store):
    identities = tenants.identities
    assert await identities.list_users(ALICE) == (ADA, ROY)
    assert await identities.list_users(BOB) == ()
    assert await identities.get_user(ALICE, "roy") == ROY
    for call in (identities.get_user(BOB, "roy"), identities.update_user(BOB, "roy", 5.0, BY, role="admin")):
        await refused_as(call, NotFound)
    await refused_as(identities.identity_of_user(BOB, "roy"), Unauthorized)
    assert await identities.identity_of_user(ALICE, "roy") == Identity(ALICE, "roy", "reader", None, "")


async def test_an_address_and_a_subject_are_one_users_of_a_tenant(tenants: Store):
    identities = tenants.identities
    await refused_as(identities.add_user(replace(ROY, user_id="roy2"), BY), InvalidRequest)
    await refused_as(identities.add_user(replace(ADA, user_id="ada2", email="x@y.z"), BY), InvalidRequest)
    await refused_as(identities.add_user(UserRow("u", ALICE, "member", 1.0), BY), InvalidRequest)
    await identities.add_user(replace(ADA, user_id="ada3", tenant_id=BOB), BY)
    assert len(await identities.list_users(ALICE)) == 2


async def test_who_signs_in_is_the_user_with_the_subject_or_with_the_verified_address(tenants: Store):
    identities = tenants.identities
    ada = SignIn("alice inc", "sub-ada", email="other@alice.example")
    assert await identities.sign_in(ada, NOW) == Identity(ALICE, "ada", "admin", None, "")
    assert (await identities.sign_in(replace(ada, role="reader"), NOW)).role == "reader"
    roy = SignIn("alice inc", "sub-roy", role="admin", email="roy@alice.example")
    await refused_as(identities.sign_in(roy, NOW), Unauthorized)
    assert await identities.sign_in(replace(roy, is_email_verified=True), NOW) == Identity(
        ALICE, "roy", "reader", None, ""
    )
    assert (await identities.sign_in(roy, NOW)).user_id == "roy"
    thief = replace(roy, subject="sub-thief", is_email_verified=True)
    await refused_as(identities.sign_in(thief, NOW), Unauthorized)
    await refused_as(identities.sign_in(replace(ada, tenant_name="bob inc"), NOW), Unauthorized)
    await refused_as(identities.sign_in(replace(ada, tenant_name="nobody"), NOW), Unauthorized)


async def test_users_and_tenants_are_made_at_first_sight_where_that_is_allowed(tenants: Store):
    identities = tenants.identities
    new = SignIn("carol inc", "sub-1", role="admin", email="c@carol.example", is_email_verified=True)
    first = await identities.sign_in(new, NOW, may_create=True)
    assert await identities.sign_in(new, NOW, may_create=True) == first
    other = SignIn("carol inc", "sub-2", email="unverified@carol.example")
    second = await identities.sign_in(other, NOW, may_create=True)
    assert (second.tenant_id, second.role, second.user_id != first.user_id) == (first.tenant_id, "member", True)
    assert [user.email for user in await identities.list_users(first.tenant_id)].count("") == 1
    assert len(await identities.list_tenants()) == 3
    await identities.update_user(first.tenant_id, first.user_id, 5.0, BY, is_disabled=True)
    await refused_as(identities.sign_in(new, NOW, may_create=True), Unauthorized)


async def test_a_sign_in_that_is_refused_changes_nothing(tenants: Store):
    identities = tenants.identities
    await identities.update_user(ALICE, "roy", 5.0, BY, is_disabled=True)
    await identities.set_tenant_disabled(BOB, True, 5.0, OPERATOR)
    before = [await identities.list_users(tenant_id) for tenant_id in (ALICE, BOB)]
    roy = SignIn("alice inc", "sub-roy", email="roy@alice.example", is_email_verified=True)
    for refused in (roy, replace(roy, tenant_name="bob inc")):
        await refused_as(identities.sign_in(refused, NOW, may_create=True), Unauthorized)
    assert [await identities.list_users(tenant_id) for tenant_id in (ALICE, BOB)] == before


async def test_the_audit_log_tells_who_did_what(tenants: Store):
    identities = tenants.identities
    await identities.add_api_key(ApiKeyRow("h1", ALICE, "", 2.5, role="member", user_id="ada"), BY)
    await identities.rotate_api_key(ALICE, "h1", "h2", 1.0, 3.0, BY)
    await identities.revoke_api_key(ALICE, "h2", 4.0, BY)
    await identities.update_user(ALICE, "roy", 5.0, BY, role="member", is_disabled=True)
    await identities.set_tenant_disabled(ALICE, True, 6.0, OPERATOR)
    entries = await tenants.ledger.audit_log(ALICE, "organizations", 0.0, NOW)
    assert [entry.event for entry in entries] == [
        "tenant_create", "user_create", "user_create", "api_key_create", "api_key_rotate", "api_key_revoke",
        "user_role_set", "user_disable", "tenant_disable",
    ]  # fmt: skip
    assert {entry.details["actor"] for entry in entries[1:-1]} == {"tml:user:ada"}
    assert {entry.details["actor_key_id"] for entry in entries[1:-1]} == {"abc"}
    assert entries[-1].details["actor"] == "operator"
    assert entries[4].details["replaced_by"] == "h2"
    assert [entry.event for entry in await tenants.ledger.audit_log(BOB, None, 0.0, NOW)] == ["tenant_create"]
