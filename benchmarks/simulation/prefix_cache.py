"""Model of vLLM's prefix cache: KV pages shared by sequences with the same prefix, with LRU eviction.

Only full blocks can be shared. The model keeps a tree of segments, each with its number of cached tokens. That
costs less than a table of blocks, and evicts the same blocks: from the end of the least recently used leaf.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from simulation.requests import Prompt, Segment

__all__ = ["BLOCK", "Node", "Pages", "PrefixCache"]

BLOCK = 16  # tokens; vLLM's default on a GPU


class Node:
    """A segment with a certain prefix.

    Attributes:
        start: number of tokens before the segment.
        cached: number of its tokens that are cached.
        users: number of sequences in the batch whose prompt contains it.
    """

    __slots__ = ("cached", "children", "parent", "segment", "start", "used_at", "users")

    def __init__(self, parent: Node | None, segment: Segment, start: int) -> None:
        self.parent = parent
        self.segment = segment
        self.start = start
        self.cached = 0
        self.users = 0
        self.used_at = 0.0
        self.children: dict[Segment, Node] = {}

    def blocks(self) -> int:
        """Number of cached blocks that end within the segment."""
        return (self.start + self.cached) // BLOCK - self.start // BLOCK


@dataclass(slots=True)
class Pages:
    """A sequence's pages: the nodes of its prompt, pinned against eviction, and its private blocks."""

    path: list[Node]
    private: int


class PrefixCache:
    """The pages of one engine.

    Args:
        blocks: total number of blocks.

    Attributes:
        private: blocks that belong to a single sequence.
        shared: blocks in the tree.
        pinned: shared blocks that sequences in the batch use.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.clear()

    def clear(self) -> None:
        """Clear the cache; allowed only while no sequence uses it."""
        self._root = Node(None, Segment(-1, 0), 0)
        self._root.users = 1
        self._leaves: list[tuple[float, int, Node]] = []  # unused leaves by age; some entries are outdated
        self._numbers = itertools.count()
        self.private = 0
        self.shared = 0
        self.pinned = 0

    @property
    def use(self) -> float:
        """The fraction of pages used by sequences in the batch, as vLLM reports it."""
        return (self.private + self.pinned) / self.blocks

    def match(self, prompt: Prompt) -> int:
        """Number of leading tokens of ``prompt`` that are cached, in full blocks."""
        matched = 0
        for node in self._path(prompt):
            matched += node.cached
            if node.cached < node.segment.tokens:
                break
        return matched // BLOCK * BLOCK

    def has_room(self, prompt: Prompt, matched: int, tokens: int) -> bool:
        """Whether a sequence that will grow to ``tokens`` fits, if ``matched`` of them are cached."""
        needed = _blocks_beyond(matched, tokens)
        free = self.blocks - self.private - self.shared
        if needed <= free:
            return True
        own = sum(node.blocks() for node in self._path(prompt) if not node.users)
        return needed <= free + self.shared - self.pinned - own

    def take(self, prompt: Prompt, matched: int, tokens: int) -> Pages:
        """Allocate pages for a sequence; :meth:`has_room` must be true."""
        pages = Pages([], _blocks_beyond(matched, tokens))
        for segment in prompt:
            self._extend(pages, segment)
        self._evict(pages.private - (self.blocks - self.private - self.shared))
        self.private += pages.private
        return pages

    def read(self, pages: Pages, tokens: int) -> None:
        """Share the first ``tokens`` tokens, which have been computed, with other sequences."""
        for node in pages.path:
            cached = min(node.segment.tokens, tokens - node.start)
            if cached > node.cached:
                before = node.blocks()
                node.cached = cached
                grown = node.blocks() - before
                self.shared += grown
                self.pinned += grown
                self.private -= grown
                pages.private -= grown

    def release(self, pages: Pages, answer: Segment, now: float) -> None:
        """End a sequence; its prompt and ``answer`` stay cached until evicted."""
        self._extend(pages, answer)
        last = pages.path[-1]
        # The last token was never an input, so it has no keys and values.
        self.read(pages, last.start + answer.tokens - 1)
        self.private -= pages.private
        for node in pages.path:
            node.users -= 1
            node.used_at = now
            if not node.users:
                self.pinned -= node.blocks()
        self._offer(last)

    def _extend(self, pages: Pages, segment: Segment) -> None:
        parent = pages.path[-1] if pages.path else self._root
        node = parent.children.get(segment)
        if node is None:
            start = parent.start + parent.segment.tokens
            node = parent.children[segment] = Node(parent, segment, start)
        if not node.users:
            self.pinned += node.blocks()
        node.users += 1
        pages.path.append(node)

    def _offer(self, node: Node) -> None:
        if not node.users and not node.children:
            heapq.heappush(self._leaves, (node.used_at, next(self._numbers), node))

    def _evict(self, needed: int) -> None:
        while needed > 0:
            used_at, _, node = heapq.heappop(self._leaves)
            if node.users or node.children or node.used_at != used_at or node.parent is None:
                continue
            before = node.blocks()
            evicted = min(needed, before)
            self.shared -= evicted
            needed -= evicted
            if before > evicted:
                node.cached = (node.start // BLOCK + before - evicted) * BLOCK - node.start
                self._offer(node)
            else:
                del node.parent.children[node.segment]
                self._offer(node.parent)
                node.parent = None

    def _path(self, prompt: Prompt) -> Iterator[Node]:
        children = self._root.children
        for segment in prompt:
            node = children.get(segment)
            if node is None:
                return
            yield node
            children = node.children


def _blocks_beyond(matched: int, tokens: int) -> int:
    return -(-tokens // BLOCK) - matched // BLOCK
