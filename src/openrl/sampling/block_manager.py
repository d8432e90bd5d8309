"""Hands out the pages of the KV cache and shares the full ones between equal prefixes.

A block is free (nobody holds it), or held by one or more sequences. A full block can be sealed: named by a digest of
the cache key and of all tokens up to its end. A sealed block that nobody holds stays findable until its page is
needed; the one unused for longest goes first. On the CPU, pages take memory when they are first written: there,
findable blocks beyond `max_idle` go before pages that nobody has used yet.
"""

import hashlib
from array import array
from collections import OrderedDict, deque
from collections.abc import Sequence

DIGEST_BYTES = 16


class BlockManager:
    """Reference counts and the prefix cache of `num_blocks` pages of `block_tokens` tokens."""

    def __init__(self, num_blocks: int, block_tokens: int, max_idle: int | None = None) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._max_idle = num_blocks if max_idle is None else max_idle
        self._references = [0] * num_blocks
        self._blank: deque[int] = deque(range(num_blocks))
        self._idle: OrderedDict[int, None] = OrderedDict()  # sealed blocks that nobody holds, oldest first
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can give."""
        return len(self._blank) + len(self._idle)

    @property
    def num_used(self) -> int:
        """Blocks that somebody holds."""
        return self.num_blocks - self.num_free

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-num_tokens // self.block_tokens)

    def references(self, block: int) -> int:
        """How many hold this block."""
        return self._references[block]

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks held once each; None, and nothing taken, where fewer are free."""
        if count > self.num_free:
            return None
        return [self._take() for _ in range(count)]

    def hold(self, blocks: Sequence[int]) -> None:
        """Add one holder to each of these blocks: held ones, or sealed ones that `find` returned."""
        for block in blocks:
            if self._references[block] == 0:
                assert block in self._idle, "a blank block has no content to share"
                del self._idle[block]
            self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Take one holder away from each of these blocks."""
        # Backwards: of one prefix the end is forgotten before the beginning, which more prompts share.
        for block in reversed(blocks):
            assert self._references[block] > 0, "released more often than held"
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free(block)

    def find(self, cache_key: bytes, tokens: Sequence[int], max_tokens: int) -> tuple[list[int], list[bytes]]:
        """The longest chain of sealed blocks that starts `tokens` and holds at most `max_tokens` of them.

        Returns the blocks and their digests; the caller must `hold` them before it allocates.
        """
        blocks: list[int] = []
        digests: list[bytes] = []
        parent = cache_key
        for start in range(0, max_tokens - self.block_tokens + 1, self.block_tokens):
            parent = digest_of_block(parent, tokens[start : start + self.block_tokens])
            block = self._block_of.get(parent)
            if block is None:
                break
            blocks.append(block)
            digests.append(parent)
        return blocks, digests

    def num_idle(self, blocks: Sequence[int]) -> int:
        """How many of these found blocks nobody holds: holding them makes `num_free` smaller."""
        return sum(self._references[block] == 0 for block in blocks)

    def seal(
        self, cache_key: bytes, tokens: Sequence[int], blocks: Sequence[int], digests: list[bytes], num_computed: int
    ) -> None:
        """Name the blocks that computing up to `num_computed` has filled; extends `digests`, one per full block."""
        for index in range(len(digests), num_computed // self.block_tokens):
            parent = digests[-1] if digests else cache_key
            start = index * self.block_tokens
            digest = digest_of_block(parent, tokens[start : start + self.block_tokens])
            digests.append(digest)
            # Two sequences may have computed the same prefix side by side: the first one keeps the name.
            if digest not in self._block_of:
                self._block_of[digest] = blocks[index]
                self._digest_of[blocks[index]] = digest

    def _take(self) -> int:
        if self._blank and len(self._idle) <= self._max_idle:
            block = self._blank.popleft()
        else:
            block, _ = self._idle.popitem(last=False)
            del self._block_of[self._digest_of.pop(block)]
        self._references[block] = 1
        return block

    def _free(self, block: int) -> None:
        if block in self._digest_of:
            self._idle[block] = None
        else:
            self._blank.appendleft(block)  # taken again before one that has never been written


def digest_of_block(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The name of a block: of its tokens and, through `parent`, of all before it and of the cache key.

    Cryptographic, because a collision would show one prompt's content to another.
    """
    return hashlib.blake2b(array("q", tokens).tobytes(), digest_size=DIGEST_BYTES, key=parent).digest()
