"""vLLM's prefix cache: pages of keys and values that sequences with the same beginning share, the oldest evicted first.

Only whole blocks can be shared. They are kept here as a tree of segments, each with how much of it is cached, which
costs less than a table of blocks and evicts the same ones: those of a leaf's end first, of the leaf unused for longest.
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
    """A segment after those before it.

    Attributes:
        start: how many tokens come before it.
        cached: how many of its tokens are.
        users: sequences in the batch that have it in their prompt.
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
        """Blocks that end in it."""
        return (self.start + self.cached) // BLOCK - self.start // BLOCK


@dataclass(slots=True)
class Pages:
    """What a sequence has: the nodes of its prompt, kept from eviction, and blocks of its own."""

    path: list[Node]
    private: int


class PrefixCache:
    """The pages of one engine.

    Args:
        blocks: how many there are.

    Attributes:
        private: blocks that one sequence has for itself.
        shared: blocks in the tree.
        pinned: those of them that sequences in the batch use.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.clear()

    def clear(self) -> None:
        """Forget everything; only while no sequence uses any of it."""
        self._root = Node(None, Segment(-1, 0), 0)
        self._root.users = 1
        self._leaves: list[tuple[float, int, Node]] = []  # that nobody uses, by age; some are outdated
        self._numbers = itertools.count()
        self.private = 0
        self.shared = 0
        self.pinned = 0

    @property
    def use(self) -> float:
        """The share of the pages that sequences in the batch use, as vLLM tells it."""
        return (self.private + self.pinned) / self.blocks

    def match(self, prompt: Prompt) -> int:
        """How many of ``prompt``'s first tokens are cached, in whole blocks."""
        matched = 0
        for node in self._path(prompt):
            matched += node.cached
            if node.cached < node.segment.tokens:
                break
        return matched // BLOCK * BLOCK

    def has_room(self, prompt: Prompt, matched: int, tokens: int) -> bool:
        """Whether a sequence that grows to ``tokens`` fits in, ``matched`` of them being cached."""
        needed = _blocks_beyond(matched, tokens)
        free = self.blocks - self.private - self.shared
        if needed <= free:
            return True
        own = sum(node.blocks() for node in self._path(prompt) if not node.users)
        return needed <= free + self.shared - self.pinned - own

    def take(self, prompt: Prompt, matched: int, tokens: int) -> Pages:
        """Room for a sequence for which there :meth:`has_room`."""
        pages = Pages([], _blocks_beyond(matched, tokens))
        for segment in prompt:
            self._extend(pages, segment)
        self._evict(pages.private - (self.blocks - self.private - self.shared))
        self.private += pages.private
        return pages

    def read(self, pages: Pages, tokens: int) -> None:
        """The first ``tokens`` tokens have been computed, so others can use them from now on."""
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

    def give_back(self, pages: Pages, answer: Segment, now: float) -> None:
        """The sequence has ended with ``answer``, which stays cached as its prompt does, until it is evicted."""
        self._extend(pages, answer)
        last = pages.path[-1]
        # Its last token was never an input, so there is nothing to keep of that one.
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
