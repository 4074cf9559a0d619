from __future__ import annotations

from typing import Any

from inference_engine_proxy_server.dashboard.tally import Tally
from inference_engine_proxy_server.dashboard.usage_totals import TokenTotals, UsageTotals
from support.records import request_record


def tally(**fields: Any) -> Tally:
    made = Tally()
    made.count([request_record(**fields)])
    return made


def test_requests_count_by_model_and_key() -> None:
    usage = UsageTotals()
    for key in ("alice", None):
        usage.add("m", key, tally(prompt_tokens=10, cached_tokens=4, output_tokens=3))

    assert usage.by_model == {"m": TokenTotals(2, 20, 8, 6)}
    assert usage.by_key == {"alice": TokenTotals(1, 10, 4, 3), "": TokenTotals(1, 10, 4, 3)}


def test_names_that_clients_make_up_take_bounded_memory() -> None:
    usage = UsageTotals()
    for number in range(1200):
        usage.add(f"m-{number}", None, tally())

    assert len(usage.by_model) == 1001
    assert usage.by_model["(others)"].requests == 200


def test_totals_of_workers_add_up() -> None:
    one, other = (
        UsageTotals({"m": TokenTotals(1, 2, 3, 4)}),
        UsageTotals({"m": TokenTotals(1, 1, 1, 1)}, {"k": TokenTotals(5)}),
    )

    merged = UsageTotals.merged([one, other])

    assert merged == UsageTotals({"m": TokenTotals(2, 3, 4, 5)}, {"k": TokenTotals(5)})
    assert one.by_model["m"].requests == 1
