"""The blocks at both ends of a reply, in which engines report what it has cost.

They are kept for every reply, at no cost for a block of the direct path. An observer that needs more, such as the
events in between, uses a :class:`~.reply_excerpt.ReplyExcerpt`.
"""

from __future__ import annotations

import re

__all__ = ["Blocks", "ends_of", "with_block"]

Blocks = tuple[bytes, ...]
"""The first block of a body and the latest ones ahead of its last one; empty before the second one."""

_LATEST = 4  # the last report, the last event and the end of a body are one block to three, and five if one is cut
_END_BYTES = 4096  # of each end; longer than any report
_CHUNK_BORDER = re.compile(rb"\r\n[0-9a-fA-F]{1,16}\r\n")


def with_block(kept: Blocks, latest: bytes, block: bytes) -> Blocks:
    """What is kept when ``block`` follows ``latest``."""
    if not kept:
        return (block[:_END_BYTES],)
    kept_of_latest = latest[-_END_BYTES:]
    return (*kept, kept_of_latest) if len(kept) <= _LATEST else (kept[0], *kept[2:], kept_of_latest)


def ends_of(kept: Blocks, last: bytes, *, is_chunked: bool) -> bytes:
    """Both ends of a body. Blocks in between may be missing.

    Args:
        kept: see :data:`Blocks`.
        last: the last block.
        is_chunked: whether blocks are chunks. Their framing is removed where it may cut a report.
    """
    if kept:
        end = b"".join((*kept[1:], last))[-_END_BYTES:]
        return kept[0][:_END_BYTES] + (_CHUNK_BORDER.sub(b"", end) if is_chunked else end)
    return last if len(last) <= 2 * _END_BYTES else last[:_END_BYTES] + last[-_END_BYTES:]
