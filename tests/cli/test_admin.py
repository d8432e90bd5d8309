"""`openrl admin` beside a store: tenants, users, keys, shares, and who did it."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from openrl.cli.data_dir import open_store
from openrl.cli.main import app
from openrl.config import Config
from openrl.errors import InvalidRequest, NotFound, OpenRLError, Unauthorized
from openrl.gateway.auth import hash_key
from openrl.store.identities import Identity
from tests.store.expectations import start_run
from tests.store.rows_for_tests import checkpoint, done, request


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def run(data_dir: Path, *arguments: str) -> str:
    result = CliRunner().invoke(app, ["admin", *arguments, "--data-dir", str(data_dir)])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def shown(data_dir: Path, *arguments: str) -> Any:
    return json.loads(run(data_dir, *arguments, "--json"))


def who(data_dir: Path, key: str) -> Identity:
    async def ask() -> Identity:
        async with open_store(Config(data_dir=data_dir)) as (store, _):
            return await store.identities.identity_of_key(hash_key(key), time.time())

    return asyncio.run(ask())


def two_tenants(data_dir: Path) -> dict[str, str]:
    """Their ids by name."""
    return {name: shown(data_dir, "tenants", "create", name)[0]["tenant_id"] for name in ("acme", "bolt")}


def test_a_disabled_tenant_is_out_and_the_other_stays(data_dir: Path):
    ids = two_tenants(data_dir)
    keys = {name: run(data_dir, "keys", "create", "--tenant", name).strip() for name in ids}
    with pytest.raises(InvalidRequest, match="already"):
        run(data_dir, "tenants", "create", "acme")
    assert shown(data_dir, "tenants", "disable", "acme")[0]["disabled_at"]
    assert who(data_dir, keys["bolt"]).tenant_id == ids["bolt"]
    with pytest.raises(Unauthorized):
        who(data_dir, keys["acme"])
    run(data_dir, "tenants", "disable", "acme", "--undo")
    assert who(data_dir, keys["acme"]) == Identity(ids["acme"], "", "admin", None, hash_key(keys["acme"])[:12])
    assert [row["name"] for row in shown(data_dir, "tenants", "list")] == ["acme", "bolt"]
    assert ids["acme"] in run(data_dir, "tenants", "list")


def test_users_of_a_tenant_have_roles_that_bound_their_keys(data_dir: Path):
    two_tenants(data_dir)
    of_acme = ("--tenant", "acme")
    run(data_dir, "users", "add", "Ada@acme.example", "--role", "admin", *of_acme)
    run(data_dir, "users", "add", "--subject", "00u1", "--name", "Roy", "--role", "reader", *of_acme)
    key = run(data_dir, "keys", "create", "--user", "ada@acme.example", *of_acme).strip()
    reader = run(data_dir, "keys", "create", "--user", "00u1", *of_acme).strip()
    assert (who(data_dir, key).role, who(data_dir, reader).role) == ("admin", "reader")
    with pytest.raises(InvalidRequest, match="its user's is reader"):
        run(data_dir, "keys", "create", "--user", "00u1", "--role", "member", *of_acme)
    with pytest.raises(NotFound, match="no user"):
        run(data_dir, "keys", "create", "--user", "00u1", "--tenant", "bolt")
    assert shown(data_dir, "users", "set-role", "ada@acme.example", "member", *of_acme)[0]["role"] == "member"
    assert who(data_dir, key).role == "member"
    run(data_dir, "users", "disable", "00u1", *of_acme)
    with pytest.raises(Unauthorized):
        who(data_dir, reader)
    assert [row["email"] for row in shown(data_dir, "users", "list", *of_acme)] == ["ada@acme.example", ""]
    assert shown(data_dir, "users", "list", "--tenant", "bolt") == []
    assert [row["user"] for row in shown(data_dir, "keys", "list", *of_acme)] == ["ada@acme.example", "00u1"]


def test_keys_are_bound_expire_and_are_rotated(data_dir: Path):
    ids = two_tenants(data_dir)
    bound = shown(data_dir, "keys", "create", "--tenant", "acme", "--project", "p", "--ttl-s", "3600")
    identity = who(data_dir, bound["key"])
    assert (identity.tenant_id, identity.role, identity.project_id) == (ids["acme"], "member", "p")
    new = run(data_dir, "keys", "rotate", bound["hash"], "--overlap-s", "0").strip()
    with pytest.raises(Unauthorized):
        who(data_dir, bound["key"])
    assert who(data_dir, new).project_id == "p"
    old, replacement = shown(data_dir, "keys", "list", "--tenant", "acme")
    assert old["replaced_by"] == replacement["hash"] == hash_key(new)[:12]
    assert shown(data_dir, "keys", "revoke", new) == {"hash": hash_key(new)[:12], "label": ""}
    with pytest.raises(Unauthorized):
        who(data_dir, new)


def test_a_share_is_made_listed_and_revoked_by_its_owner(data_dir: Path):
    ids = two_tenants(data_dir)

    async def save() -> None:
        async with open_store(Config(data_dir=data_dir)) as (store, _):
            await start_run(store, tenant_id=ids["acme"])
            row = checkpoint("w", ids["acme"], created_at=time.time())
            saving = await store.enqueue(request("r1", 1, ids["acme"], kind="save_weights"), b"")
            await store.finish([done(saving.request_id, checkpoint=row)])

    asyncio.run(save())
    path, of_acme = "tinker://r1/weights/w", ("--tenant", "acme")
    token = run(data_dir, "share", "create", path, "--label", "to bolt", *of_acme).strip()
    assert token.startswith("share-")
    with pytest.raises(NotFound):
        run(data_dir, "share", "create", path, "--tenant", "bolt")
    (row,) = shown(data_dir, "share", "list", *of_acme)
    assert (row["tinker_path"], row["label"], row["revoked_at"]) == (path, "to bolt", None)

    async def read() -> str:
        async with open_store(Config(data_dir=data_dir)) as (store, _):
            return (await store.shared_checkpoint(hash_key(token), "r1", "weights", "w")).key

    assert asyncio.run(read()) == "checkpoints/w"
    assert shown(data_dir, "share", "list", "--tenant", "bolt") == []
    with pytest.raises(OpenRLError):
        run(data_dir, "share", "revoke", row["share_id"], "--tenant", "bolt")
    assert shown(data_dir, "share", "revoke", row["share_id"], *of_acme)[0]["revoked_at"]
    with pytest.raises(Unauthorized):
        asyncio.run(read())


def test_the_audit_log_names_the_operator(data_dir: Path):
    two_tenants(data_dir)
    run(data_dir, "users", "add", "ada@acme.example", "--tenant", "acme")
    run(data_dir, "users", "set-role", "ada@acme.example", "reader", "--tenant", "acme")
    entries = shown(data_dir, "audit", "--tenant", "acme")
    assert [entry["event"] for entry in entries] == ["tenant_create", "user_create", "user_role_set"]
    assert all(entry["actor"].startswith("operator:") for entry in entries)
    assert entries[-1]["details"]["role"] == "reader"
    assert {entry["tenant"] for entry in shown(data_dir, "audit")} == {"acme", "bolt"}
    assert shown(data_dir, "audit", "--day", "2020-01-01") == []
    assert "user_role_set" in run(data_dir, "audit")
