from openrl.store.keys import MAX_AGE_S, MAX_KEYS, KeyCache, KeyUses


def test_a_tenant_is_remembered_for_a_few_seconds():
    now = [0.0]
    cache: KeyCache[str] = KeyCache(lambda: now[0])
    cache.put("h1", "alice", cache.version)
    cache.put("h2", "bob", cache.version)
    now[0] = MAX_AGE_S
    assert (cache.get("h1"), cache.get("h2"), cache.get("h3")) == ("alice", "bob", None)
    now[0] += 0.1
    assert cache.get("h1") is None


def test_what_was_read_before_keys_changed_is_not_remembered():
    cache: KeyCache[str] = KeyCache(lambda: 0.0)
    version = cache.version
    cache.clear()
    cache.put("h1", "alice", version)
    assert cache.get("h1") is None


def test_the_number_of_keys_is_bounded():
    cache: KeyCache[str] = KeyCache(lambda: 0.0)
    for n in range(MAX_KEYS + 1):
        cache.put(f"h{n}", "alice", cache.version)
    assert cache.get("h0") is None
    assert cache.get(f"h{MAX_KEYS}") == "alice"


def test_uses_are_noted_once_in_a_while():
    uses = KeyUses(60.0)
    assert [uses.is_due("h1", now) for now in (0.0, 59.9, 60.0, 61.0)] == [True, False, True, False]
    assert uses.is_due("h2", 61.0)
