"""The gateway asks the store only what carries the tenant, or the credential itself."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

from openrl.gateway.project_ledger import ProjectLedger
from openrl.gateway.project_store import ProjectStore
from openrl.store.base import Store, TenantStore
from openrl.store.identities import Identities, TenantIdentities
from openrl.store.ledger import Ledger, TenantLedger
from openrl.store.quotas import Quotas, TenantQuotas

GATEWAY = Path(__file__).parents[2] / "src" / "openrl" / "gateway"
PARTS = {
    "store": (TenantStore, Store),
    "ledger": (TenantLedger, Ledger),
    "identities": (TenantIdentities, Identities),
    "quotas": (TenantQuotas, Quotas),
}
OF_ALL_TENANTS = {
    "store": {
        "close", "close_run", "delete_expired_checkpoints", "doomed_objects", "finish", "forget_doomed_object",
        "live_runs", "new_requests", "objects_in_use", "prune", "record_snapshot", "run_log", "run_progress",
        "sessions_silent_since",
    },
    "ledger": {"forget_losses", "load", "losses_in_use", "spending"},
    "identities": {"create_tenant", "list_tenants", "set_tenant_disabled"},
    "quotas": {"clear_quota", "device_use", "list_quotas", "put_quota"},
}  # fmt: skip
# A row that carries its tenant, or a credential that tells it.
CARRIES = {"tenant_id", "session", "run", "sampler", "request", "copy", "share", "query", "user", "key"}
CREDENTIALS = {"identity_of_key", "sign_in", "shared_checkpoint"}


def methods(protocol: type) -> dict[str, list[str]]:
    return {
        name: list(inspect.signature(member).parameters)[1:]
        for name, member in inspect.getmembers(protocol, inspect.isfunction)
        if not name.startswith("_")
    }


def called() -> Iterator[tuple[str, str, str]]:
    """Every call of something that is named like a part of the store: file, part, method."""
    for file in sorted(GATEWAY.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute | ast.Name):
                part = node.value.attr if isinstance(node.value, ast.Attribute) else node.value.id
                if part.strip("_") in PARTS:
                    yield file.name, part.strip("_"), node.attr


def test_what_is_over_all_tenants_is_not_the_gateways():
    for part, (tenants, whole) in PARTS.items():
        assert set(methods(whole)) - set(methods(tenants)) == OF_ALL_TENANTS[part]


def test_every_method_of_the_gateway_carries_the_tenant():
    for tenants, _ in PARTS.values():
        for name, parameters in methods(tenants).items():
            assert CARRIES & set(parameters) or name in CREDENTIALS, (tenants, name)


def test_the_gateway_calls_nothing_else():
    found = list(called())
    assert len(found) > 60
    for file, part, name in found:
        allowed = {*methods(PARTS[part][0]), "ledger", "identities", "cluster", "quotas"}
        assert name in allowed, f"{file}: {part}.{name}"


def test_a_key_of_one_project_has_an_answer_to_every_method():
    for view, (protocol, _) in ((ProjectStore, PARTS["store"]), (ProjectLedger, PARTS["ledger"])):
        assert set(methods(protocol)) <= set(methods(view))
