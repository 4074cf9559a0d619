from __future__ import annotations

from collections.abc import Iterator

import pytest

from inference_engine_proxy_server.processes.channel import DRAIN, SERVING, SIGNAL, Channel

Ends = tuple[Channel, Channel]


@pytest.fixture
def ends() -> Iterator[Ends]:
    one, other = Channel.pair()
    yield one, other
    one.close()
    other.close()


def test_messages_come_whole_and_in_order_whatever_is_in_them(ends: Ends) -> None:
    one, other = ends
    one.tell(SIGNAL, "15")
    one.tell(SERVING)
    one.tell(DRAIN, "http://a:1/ä b")

    assert other.hear() == [(SIGNAL, "15"), (SERVING, ""), (DRAIN, "http://a:1/ä b")]
    assert other.hear() == []


def test_what_was_said_last_is_heard_before_the_end_is(ends: Ends) -> None:
    one, other = ends
    one.tell(SERVING)
    one.close()

    assert other.hear() == [(SERVING, "")]
    assert other.hear() is None


def test_who_does_not_listen_or_has_gone_stops_nobody(ends: Ends) -> None:
    one, other = ends
    for _ in range(10_000):
        one.tell(DRAIN, "http://a:1" * 10)
    assert len(other.hear() or ()) > 100

    other.close()
    one.tell(SERVING)
    assert one.hear() is None
