from __future__ import annotations

import pytest

from inference_engine_proxy_server.dashboard.tally import Tally
from inference_engine_proxy_server.wire.outcome import Outcome
from support.records import request_record

RECORDS = [
    request_record(prompt_tokens=10, cached_tokens=4, output_tokens=3, first_byte_seconds=0.1),
    request_record(prompt_tokens=7, cached_tokens=None, output_tokens=None, first_byte_seconds=2.0),
    request_record(status=503, first_byte_seconds=0.3),
    request_record(status=404, first_byte_seconds=0.5),
    request_record(outcome=Outcome.BROKEN, output_tokens=2, first_byte_seconds=None),
]


@pytest.mark.parametrize("at_once", range(1, 6))
def test_requests_count_alike_one_by_one_and_together(at_once: int) -> None:
    tally = Tally()
    for start in range(0, len(RECORDS), at_once):
        tally.count(RECORDS[start : start + at_once])

    assert (tally.requests, tally.errors) == (5, 2)
    assert (tally.input_tokens, tally.cached_tokens, tally.output_tokens) == (17, 4, 5)
    assert sum(tally.latencies.values()) == 2
