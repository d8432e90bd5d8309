"""Pages are never lost, never given twice, and shared only between equal prefixes."""

from random import Random

import pytest

from openrl.sampling.block_manager import BlockManager

KEY, OTHER_KEY = b"k" * 16, b"o" * 16


def held(blocks: BlockManager, tokens: list[int], key: bytes = KEY) -> tuple[list[int], int]:
    """Blocks for the tokens as a sequence takes them, sealed; and how many were found."""
    found, digests = blocks.find(key, tokens, len(tokens))
    blocks.hold(found)
    fresh = blocks.allocate(blocks.blocks_for(len(tokens)) - len(found))
    assert fresh is not None
    blocks.seal(key, tokens, found + fresh, digests, len(tokens))
    return found + fresh, len(found)


def test_equal_prefixes_share_full_blocks_only():
    blocks = BlockManager(8, 4)
    first, _ = held(blocks, list(range(10)))
    second, num_found = held(blocks, list(range(10)))
    assert num_found == 2
    assert first[:2] == second[:2]
    assert first[2] != second[2]
    assert blocks.num_used == 4


def test_another_cache_key_finds_nothing():
    blocks = BlockManager(8, 4)
    held(blocks, list(range(8)))
    assert blocks.find(OTHER_KEY, list(range(8)), 8) == ([], [])


def test_a_block_is_found_only_after_everything_before_it():
    blocks = BlockManager(8, 4)
    held(blocks, [1, 2, 3, 4, 5, 6, 7, 8])
    assert blocks.find(KEY, [9, 9, 9, 9, 5, 6, 7, 8], 8)[0] == []
    assert len(blocks.find(KEY, [1, 2, 3, 4, 9, 9, 9, 9], 8)[0]) == 1


def test_find_stops_before_the_token_that_must_be_computed():
    blocks = BlockManager(8, 4)
    held(blocks, list(range(8)))
    assert len(blocks.find(KEY, list(range(8)), 7)[0]) == 1


def test_a_released_prefix_is_found_until_its_pages_are_needed():
    blocks = BlockManager(4, 4)
    first, _ = held(blocks, list(range(8)))
    blocks.release(first)
    assert blocks.num_free == 4
    assert blocks.find(KEY, list(range(8)), 8)[0] == first
    assert blocks.allocate(3) is not None
    # The end of the prefix went first: its beginning is what other prompts share.
    assert blocks.find(KEY, list(range(8)), 8)[0] == first[:1]


def test_the_prefix_unused_for_longest_goes_first():
    blocks = BlockManager(3, 4)
    old, _ = held(blocks, [1] * 4)
    young, _ = held(blocks, [2] * 4)
    blocks.release(old)
    blocks.release(young)
    assert blocks.allocate(2) is not None
    assert blocks.find(KEY, [1] * 4, 4)[0] == []
    assert blocks.find(KEY, [2] * 4, 4)[0] == young


def test_asking_for_more_than_is_free_takes_nothing():
    blocks = BlockManager(3, 4)
    assert blocks.allocate(4) is None
    assert blocks.num_free == 3


def test_releasing_more_often_than_held_is_a_bug_that_shows():
    blocks = BlockManager(2, 4)
    taken = blocks.allocate(1)
    assert taken is not None
    blocks.release(taken)
    with pytest.raises(AssertionError, match="released more often"):
        blocks.release(taken)


@pytest.mark.parametrize("seed", range(8))
def test_random_use_never_leaks_or_doubles_a_block(seed: int):
    random = Random(seed)
    blocks = BlockManager(24, 4)
    holders: list[tuple[list[int], list[int]]] = []
    content: dict[int, list[int]] = {}  # of full blocks: all tokens up to their end
    for _ in range(400):
        tokens = [random.randrange(2) for _ in range(random.randrange(1, 30))]
        if len(holders) < 5 and blocks.num_free >= blocks.blocks_for(len(tokens)) + 1:
            table, num_found = held(blocks, tokens)
            for index in range(num_found):
                assert content[table[index]] == tokens[: 4 * index + 4]
            for index in range(len(tokens) // 4):
                content[table[index]] = tokens[: 4 * index + 4]
            holders.append((table, tokens))
        elif holders:
            blocks.release(holders.pop(random.randrange(len(holders)))[0])
        expected = [0] * 24
        for table, _ in holders:
            assert len(set(table)) == len(table)
            for block in table:
                expected[block] += 1
        assert [blocks.references(block) for block in range(24)] == expected
        assert blocks.num_used == sum(count > 0 for count in expected)
    for table, _ in holders:
        blocks.release(table)
    assert blocks.num_used == 0


def test_prefixes_beyond_the_idle_limit_go_before_pages_that_nobody_has_used():
    blocks = BlockManager(8, 4, max_idle=2)
    pages = blocks.allocate(1)
    assert pages is not None
    blocks.release(pages)
    for start in range(0, 80, 8):
        taken, _ = held(blocks, list(range(start, start + 8)))
        blocks.release(taken)
        pages += taken
    assert len(set(pages)) == 4  # two held at a time and two idle
    assert blocks.num_free == 8
    everything = blocks.allocate(8)
    assert everything is not None
    assert sorted(everything) == list(range(8))
