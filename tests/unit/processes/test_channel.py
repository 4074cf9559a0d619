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


def test_messages_arrive_whole_and_in_order_whatever_they_contain(ends: Ends) -> None:
    one, other = ends
    one.send(SIGNAL, "15")
    one.send(SERVING)
    one.send(DRAIN, "http://a:1/ä b")

    assert other.receive() == [(SIGNAL, "15"), (SERVING, ""), (DRAIN, "http://a:1/ä b")]
    assert other.receive() == []


def test_the_last_message_is_received_before_the_close(ends: Ends) -> None:
    one, other = ends
    one.send(SERVING)
    one.close()

    assert other.receive() == [(SERVING, "")]
    assert other.receive() is None


def test_an_end_that_does_not_read_or_is_closed_does_not_block_the_sender(ends: Ends) -> None:
    one, other = ends
    for _ in range(10_000):
        one.send(DRAIN, "http://a:1" * 10)
    assert len(other.receive() or ()) > 100

    other.close()
    one.send(SERVING)
    assert one.receive() is None
