"""Initial inputs of the fuzzer, and inputs that once broke a rule."""

from __future__ import annotations

from contextlib import closing

import pytest

from fuzz.targets import check, regressions, seeds
from support.fakes.memory import HurryingLoop


def test_initial_inputs_of_fuzzing_break_no_rule() -> None:
    with closing(HurryingLoop()) as loop:
        for name, data in seeds().items():
            try:
                check(loop, data)
            except Exception as error:
                raise AssertionError(f"{name}: {data!r}") from error


@pytest.mark.parametrize("data", regressions().values(), ids=regressions())
def test_inputs_that_once_broke_a_rule_break_none(data: bytes) -> None:
    with closing(HurryingLoop()) as loop:
        check(loop, data)
