"""Finding blocks by content: chained digests of token blocks, and an index over them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

DIGEST_SIZE = 16
UNSALTED_ROOT = bytes(DIGEST_SIZE)


def root_digest(salt: str | None) -> bytes:
    """The parent of a sequence's first block; differs for every salt."""
    if salt is None:
        return UNSALTED_ROOT
    return blake2b(salt.encode(), digest_size=DIGEST_SIZE, person=b"salt").digest()


def block_digest(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Digest of a full block's tokens and, through ``parent``, of all tokens before it."""
    content = array("q", token_ids).tobytes()
    return blake2b(parent + content, digest_size=DIGEST_SIZE).digest()


class PrefixIndex:
    """A one-to-one map between digests and the blocks that hold their content.

    Also counts, in tokens, what admissions looked for and what they found. ``digest_of`` is the
    block's side of the map, to be read only.
    """

    __slots__ = ("_block_of", "digest_of", "num_hit_tokens", "num_queried_tokens")

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self.digest_of: dict[int, bytes] = {}
        self.num_queried_tokens = 0
        self.num_hit_tokens = 0

    def __len__(self) -> int:
        return len(self._block_of)

    def __contains__(self, block_id: int) -> bool:
        return block_id in self.digest_of

    def find(self, digest: bytes) -> int | None:
        """The block holding this content, or None."""
        return self._block_of.get(digest)

    def find_run(self, digests: Sequence[bytes], start: int, stop: int) -> list[int]:
        """Blocks of ``digests[start:stop]`` up to the first that isn't indexed."""
        block_of = self._block_of
        found: list[int] = []
        for position in range(start, min(stop, len(digests))):
            block_id = block_of.get(digests[position])
            if block_id is None:
                break
            found.append(block_id)
        return found

    def add(self, digest: bytes, block_id: int) -> bool:
        """True if the block is now findable; False if an equal or its own content already is."""
        if digest in self._block_of or block_id in self.digest_of:
            return False
        self._block_of[digest] = block_id
        self.digest_of[block_id] = digest
        return True

    def discard(self, block_id: int) -> bool:
        """True if the block was findable; it no longer is."""
        digest = self.digest_of.pop(block_id, None)
        if digest is None:
            return False
        del self._block_of[digest]
        return True

    def clear(self) -> None:
        """Forget every block; the counts stay."""
        self._block_of.clear()
        self.digest_of.clear()

    def record_query(self, num_queried: int, num_hit: int) -> None:
        """Count an admission that looked for ``num_queried`` tokens and found ``num_hit``."""
        self.num_queried_tokens += num_queried
        self.num_hit_tokens += num_hit

    def check(self) -> None:
        """Raise AssertionError unless digests and blocks map one to one."""
        inverse = {block_id: digest for digest, block_id in self._block_of.items()}
        assert inverse == self.digest_of, "digests and blocks don't map one to one"
        assert len(inverse) == len(self._block_of), "two digests share a block"
