"""Shares in both stores: who may lend which checkpoint, and until when."""

from dataclasses import replace

import pytest

from openrl.errors import NotFound, Unauthorized
from openrl.store.base import Store
from openrl.store.identities import OPERATOR, ShareRow, TenantRow
from tests.store.conftest import NOW
from tests.store.expectations import refused_as, start_run
from tests.store.rows_for_tests import ALICE, BOB, checkpoint, done, request, session

SHARE = ShareRow("t1", ALICE, "r1", "weights", "w", NOW - 10.0, NOW + 10.0, "to bob")


@pytest.fixture
async def saved(store: Store) -> Store:
    """Alice's checkpoint tinker://r1/weights/w."""
    await store.create_session(session("r1-session", project_id="p"))
    await start_run(store)
    saving = await store.enqueue(request("r1", 1, kind="save_weights"), b"")
    await store.finish([done(saving.request_id, checkpoint=checkpoint("w"))])
    return store


async def test_a_share_is_of_one_checkpoint_of_its_tenants_own(saved: Store):
    assert await saved.create_share(SHARE, OPERATOR) == SHARE
    assert (await saved.shared_checkpoint("t1", "r1", "weights", "w")).key == "checkpoints/w"
    await refused_as(saved.shared_checkpoint("t1", "r1", "sampler_weights", "w"), NotFound)
    await refused_as(saved.shared_checkpoint("t2", "r1", "weights", "w"), Unauthorized)
    await refused_as(saved.create_share(replace(SHARE, token_hash="t3", tenant_id=BOB), OPERATOR), NotFound)
    await refused_as(saved.create_share(replace(SHARE, token_hash="t3", name="x"), OPERATOR), NotFound)


async def test_a_share_is_over_when_its_time_or_its_owner_says_so(saved: Store):
    await saved.create_share(SHARE, OPERATOR)
    await saved.create_share(replace(SHARE, token_hash="t2", expires_at=NOW), OPERATOR)
    await refused_as(saved.shared_checkpoint("t2", "r1", "weights", "w"), Unauthorized)
    await refused_as(saved.revoke_share(BOB, "t1", NOW, OPERATOR), NotFound)
    assert (await saved.revoke_share(ALICE, "t1", 5.0, OPERATOR)).revoked_at == 5.0
    assert (await saved.revoke_share(ALICE, "t1", 6.0, OPERATOR)).revoked_at == 5.0
    await refused_as(saved.shared_checkpoint("t1", "r1", "weights", "w"), Unauthorized)
    entries = await saved.ledger.audit_log(ALICE, "checkpoints", 0.0, NOW + 1.0)
    events = [entry.event for entry in entries if entry.event.startswith("share")]
    assert events == ["share_revoke", "share_create", "share_create"]


async def test_a_disabled_tenant_lends_nothing(saved: Store):
    await saved.identities.create_tenant(TenantRow(ALICE, "alice", 1.0), OPERATOR)
    await saved.create_share(SHARE, OPERATOR)
    await saved.identities.set_tenant_disabled(ALICE, True, 2.0, OPERATOR)
    await refused_as(saved.shared_checkpoint("t1", "r1", "weights", "w"), Unauthorized)


async def test_shares_are_listed_newest_first_for_their_tenant_and_by_project(saved: Store):
    newer = replace(SHARE, token_hash="t2", created_at=NOW)
    for share in (SHARE, newer):
        await saved.create_share(share, OPERATOR)
    assert await saved.list_shares(ALICE) == await saved.list_shares(ALICE, "p") == (newer, SHARE)
    assert await saved.list_shares(ALICE, "default") == await saved.list_shares(BOB) == ()


async def test_a_share_ends_with_its_checkpoint(saved: Store):
    await saved.create_share(SHARE, OPERATOR)
    await saved.delete_checkpoint(ALICE, "r1", "weights", "w")
    await refused_as(saved.shared_checkpoint("t1", "r1", "weights", "w"), NotFound)
