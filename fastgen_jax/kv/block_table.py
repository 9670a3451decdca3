"""A request's blocks over its life: open, commit, swap for shared ones, close."""

from __future__ import annotations

from fastgen_jax.kv.layout import blocks_for
from fastgen_jax.kv.pool import BlockPool
from fastgen_jax.kv.prefix import block_digest, root_digest
from fastgen_jax.request import Request, RequestState


class BlockTables:
    """Keeps requests' block lists and digests in step with a pool.

    ``block_hashes`` has a digest for every full block of known tokens and outlives preemption;
    ``num_hashed_blocks`` counts the leading blocks held now that have been offered to the index.
    """

    __slots__ = ("_changes", "block_size", "pool")

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.block_size = pool.block_size
        self._changes: dict[Request, int] = {}

    def take_changes(self) -> tuple[tuple[Request, int], ...]:
        """Each request whose list changed since the last call, with the first place that did."""
        changes = tuple(self._changes.items())
        self._changes.clear()
        return changes

    def extend_hashes(self, request: Request) -> None:
        """Digest the full blocks of known tokens that have no digest yet."""
        if not self.pool.caches_prefixes:
            return
        hashes, tokens, size = request.block_hashes, request.token_ids, self.block_size
        while (len(hashes) + 1) * size <= len(tokens):
            parent = hashes[-1] if hashes else root_digest(request.cache_salt)
            start = len(hashes) * size
            hashes.append(block_digest(parent, tokens[start : start + size]))

    def commit(self, request: Request) -> None:
        """Make findable the blocks of a running request that are full, known and planned.

        The step that writes them runs before, or in each layer writes before, any step that a
        later lookup leads to reads them.
        """
        hashes = request.block_hashes
        done = request.num_hashed_blocks
        ready = min(
            request.num_computed_tokens // self.block_size, len(hashes), len(request.block_ids)
        )
        for position in range(done, ready):
            self.pool.commit(hashes[position], request.block_ids[position])
        request.num_hashed_blocks = max(done, ready)

    def find_prefix(self, request: Request, start: int = 0) -> list[int]:
        """Cached blocks of its tokens from block ``start`` on; never reaches the last token.

        The last token is always computed, since its logits are needed. A request that wants
        logprobs of its prompt needs the logits of all of it and finds nothing.
        """
        if not self.pool.caches_prefixes or request.params.prompt_logprobs is not None:
            return []
        stop = (request.num_tokens - 1) // self.block_size
        return self.pool.index.find_run(request.block_hashes, start, stop)

    def open(self, request: Request, cached: list[int]) -> None:
        """Hold the ``cached`` blocks and fresh ones for all other known tokens."""
        self.pool.share(cached)
        total = blocks_for(request.num_tokens, self.block_size)
        request.block_ids = cached + self.pool.allocate(total - len(cached))
        self._changes[request] = 0
        request.num_computed_tokens = len(cached) * self.block_size
        request.num_hashed_blocks = len(cached)
        request.num_cached_tokens = min(request.num_computed_tokens, request.num_prompt_tokens)
        if self.pool.caches_prefixes and request.params.prompt_logprobs is None:
            self.pool.index.record_query(request.num_tokens, request.num_computed_tokens)

    def adopt_shared(self, request: Request) -> None:
        """Swap blocks not yet full for equal ones that became findable since admission."""
        start = request.num_computed_tokens // self.block_size
        shared = self.find_prefix(request, start)
        if not shared:
            return
        stop = start + len(shared)
        self.pool.share(shared)
        own = request.block_ids[start:stop]
        request.block_ids[start:stop] = shared
        self._changes[request] = min(start, self._changes.get(request, start))
        self.pool.release(own)
        num_tokens = stop * self.block_size - request.num_computed_tokens
        request.num_computed_tokens += num_tokens
        request.num_hashed_blocks = stop
        request.num_cached_tokens = min(
            request.num_cached_tokens + num_tokens, request.num_prompt_tokens
        )
        self.pool.index.record_query(0, num_tokens)

    def append(self, request: Request, num_blocks: int) -> None:
        """Hold fresh blocks behind those it has; the pool must have them free."""
        self._changes.setdefault(request, len(request.block_ids))
        request.block_ids += self.pool.allocate(num_blocks)

    def append_known(self, request: Request) -> None:
        """Digest and commit the block that the last known token filled."""
        self.extend_hashes(request)
        if request.state is RequestState.RUNNING:
            self.commit(request)

    def close(self, request: Request) -> None:
        """Give back all its blocks; findable ones stay findable until reallocated."""
        self.pool.release(request.block_ids)
        request.block_ids = []
        request.num_hashed_blocks = 0
        self._changes.pop(request, None)

    def forget(self, request: Request) -> None:
        """Make every block with content of this request unfindable, whoever holds it."""
        find = self.pool.index.find
        found = (find(digest) for digest in request.block_hashes)
        self.pool.forget([block_id for block_id in found if block_id is not None])
