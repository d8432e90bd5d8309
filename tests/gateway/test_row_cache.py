import pytest

from openrl.errors import NotFound
from openrl.gateway.row_cache import RowCache


async def test_rows_are_loaded_once_until_they_are_old_and_per_tenant():
    now = 0.0
    loads: list[tuple[str, str]] = []

    async def load(tenant_id: str, row_id: str) -> str:
        loads.append((tenant_id, row_id))
        return f"{tenant_id}/{row_id}"

    cache = RowCache[str](capacity=2, max_age_s=10.0, clock=lambda: now)
    assert [await cache.get("a", "x", load), await cache.get("a", "x", load)] == ["a/x", "a/x"]
    assert await cache.get("b", "x", load) == "b/x"
    assert loads == [("a", "x"), ("b", "x")]
    now = 11.0
    await cache.get("a", "x", load)
    assert len(loads) == 3
    await cache.get("a", "y", load)
    await cache.get("a", "z", load)
    await cache.get("a", "x", load)
    assert len(loads) == 6


async def test_errors_are_not_remembered():
    async def missing(tenant_id: str, row_id: str) -> str:
        raise NotFound(row_id)

    async def present(tenant_id: str, row_id: str) -> str:
        return "row"

    cache = RowCache[str](2, 10.0, lambda: 0.0)
    with pytest.raises(NotFound):
        await cache.get("a", "x", missing)
    assert await cache.get("a", "x", present) == "row"
