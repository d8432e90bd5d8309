import asyncio
import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from openrl.cli.credentials import have_first_key
from openrl.cli.data_dir import open_store
from openrl.cli.main import app
from openrl.config import Config
from openrl.errors import InvalidRequest, NotFound, Unauthorized
from openrl.gateway.auth import hash_key


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def run(*arguments: str, data_dir: Path) -> str:
    result = CliRunner().invoke(app, [*arguments, "--data-dir", str(data_dir)])
    if result.exception is not None:
        raise result.exception
    return result.stdout


async def tenant_of(key: str, data_dir: Path) -> str:
    async with open_store(Config(data_dir=data_dir)) as (store, _):
        return (await store.identities.identity_of_key(hash_key(key), 0.0)).tenant_id


def test_keys_of_two_tenants_open_different_doors(data_dir: Path):
    keys = [run("keys", "create", "--tenant", name, data_dir=data_dir).strip() for name in ("ada", "bob", "ada")]
    ada, bob, ada_too = (asyncio.run(tenant_of(key, data_dir)) for key in keys)
    assert ada == ada_too != bob
    assert all(key.startswith("tml-") for key in keys)


def test_a_list_shows_hashes_and_never_keys(data_dir: Path):
    key = run("keys", "create", "--tenant", "ada", "--label", "laptop", data_dir=data_dir).strip()
    run("keys", "create", "--tenant", "bob", data_dir=data_dir)
    [row] = json.loads(run("keys", "list", "--tenant", "ada", "--json", data_dir=data_dir))
    assert (row["tenant"], row["label"], row["revoked_at"]) == ("ada", "laptop", None)
    assert row["hash"] == hash_key(key)[:12]
    table = run("keys", "list", data_dir=data_dir)
    assert row["hash"] in table
    assert key not in table


def test_a_revoked_key_opens_nothing_and_others_go_on(data_dir: Path):
    first, second = (run("keys", "create", data_dir=data_dir).strip() for _ in range(2))
    assert "revoked" in run("keys", "revoke", first, data_dir=data_dir)
    with pytest.raises(Unauthorized):
        asyncio.run(tenant_of(first, data_dir))
    assert asyncio.run(tenant_of(second, data_dir))
    run("keys", "revoke", hash_key(second)[:8], data_dir=data_dir)
    with pytest.raises(Unauthorized):
        asyncio.run(tenant_of(second, data_dir))


def test_what_matches_no_single_key_is_refused(data_dir: Path):
    run("keys", "create", data_dir=data_dir)
    with pytest.raises(InvalidRequest, match="0 keys match"):
        run("keys", "revoke", "ffffffff", data_dir=data_dir)
    with pytest.raises(InvalidRequest, match="at least 6 letters"):
        run("keys", "revoke", "", data_dir=data_dir)


def test_an_unknown_tenant_is_refused_with_the_known_ones(data_dir: Path):
    run("keys", "create", "--tenant", "ada", data_dir=data_dir)
    with pytest.raises(NotFound, match="no tenant 'eve'; tenants: ada"):
        run("keys", "list", "--tenant", "eve", data_dir=data_dir)


async def test_the_first_key_is_made_once_and_only_its_owner_can_read_it(data_dir: Path):
    async with open_store(Config(data_dir=data_dir)) as (store, _):
        file = data_dir / "key"
        key = await have_first_key(store, file, 0.0)
        assert await have_first_key(store, file, 1.0) == key
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        (tenant,) = await store.identities.list_tenants()
        assert len(await store.identities.list_api_keys(tenant.tenant_id)) == 1
        assert (await store.identities.identity_of_key(hash_key(key), 0.0)).role == "admin"
