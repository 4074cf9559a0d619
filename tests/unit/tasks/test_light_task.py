from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from inference_engine_proxy_server.tasks.light_task import Completion, LightTask
from support.fakes.front import until
from support.fakes.memory import turns


class Run:
    """A coroutine in a light task, and how it ended."""

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self.ended: list[BaseException | None] = []
        self.task = LightTask(coroutine, lambda _, error: self.ended.append(error))
        self.task.run()

    @property
    def was_cancelled(self) -> bool:
        return [type(error) for error in self.ended] == [asyncio.CancelledError]


async def test_a_coroutine_that_never_waits_runs_to_its_end_at_once() -> None:
    async def waits_for_nothing() -> None:
        return

    assert Run(waits_for_nothing()).ended == [None]


async def test_the_exception_is_passed_to_on_end() -> None:
    error = ValueError()

    async def fails() -> None:
        raise error

    assert Run(fails()).ended == [error]


async def test_a_waiter_resumes_within_set_result() -> None:
    completion, got = Completion[int](), []

    async def waits() -> None:
        got.append(await completion)
        got.append(await completion)  # already done, so this does not wait

    run = Run(waits())
    assert not run.ended

    completion.set_result(7)

    assert (run.ended, got) == ([None], [7, 7])


async def test_a_failure_reaches_the_waiter_in_the_next_loop_iteration() -> None:
    completion, error = Completion[int](), ValueError()

    async def waits() -> None:
        await completion

    run = Run(waits())
    completion.set_exception(error)
    assert not run.ended

    await turns(1)

    assert run.ended == [error]


async def test_a_light_task_can_wait_for_futures_tasks_and_sleeps() -> None:
    future = asyncio.get_running_loop().create_future()

    async def doubled(number: int) -> int:
        async with asyncio.timeout(5):
            await asyncio.sleep(0)
        return number * 2

    got = []

    async def waits() -> None:
        number = await future
        await asyncio.sleep(0)
        got.append(await asyncio.get_running_loop().create_task(doubled(number)))
        await asyncio.sleep(0.001)

    run = Run(waits())
    future.set_result(4)
    await until(lambda: run.ended)

    assert (run.ended, got) == ([None], [8])


async def test_a_failed_future_raises_in_the_coroutine() -> None:
    future, error = asyncio.get_running_loop().create_future(), ValueError()

    async def waits() -> None:
        await future

    run = Run(waits())
    future.set_exception(error)
    await turns(2)

    assert run.ended == [error]


@pytest.mark.parametrize("what", ["completion", "future", "task", "turn"])
async def test_a_light_task_can_be_cancelled_whatever_it_waits_for(what: str) -> None:
    tidied = []
    inner: list[asyncio.Task[None]] = []

    async def waits() -> None:
        try:
            if what == "completion":
                await Completion[int]()
            elif what == "future":
                await asyncio.get_running_loop().create_future()
            elif what == "task":
                inner.append(asyncio.get_running_loop().create_task(asyncio.sleep(60)))
                await inner[0]
            else:
                await asyncio.sleep(0)
        finally:
            tidied.append(True)

    run = Run(waits())
    run.task.cancel()
    assert not run.ended  # never within the call to cancel
    await turns(4)

    assert run.was_cancelled
    assert tidied == [True]
    assert all(task.cancelled() for task in inner)


@pytest.mark.parametrize("what", ["completion", "future"])
async def test_a_result_already_set_does_not_prevent_cancellation(what: str) -> None:
    waited_for: Any = Completion[int]() if what == "completion" else asyncio.get_running_loop().create_future()
    is_failure = what == "completion"  # a completion delivers results immediately, but failures later
    got = []

    async def waits() -> None:
        try:
            await waited_for
        finally:
            got.append(waited_for.done())
            await asyncio.sleep(0)  # clean-up code may still wait

    run = Run(waits())
    if is_failure:
        waited_for.set_exception(ValueError())
    else:
        waited_for.set_result(1)
    run.task.cancel()
    await turns(4)

    assert run.was_cancelled
    assert got == [True]


async def test_a_light_task_can_be_cancelled_from_within_its_own_coroutine() -> None:
    runs: list[Run] = []
    reached = []

    async def waits() -> None:
        await asyncio.sleep(0)
        runs[0].task.cancel()
        reached.append("code up to the next await")
        await Completion[int]()
        reached.append("code after it")

    runs.append(Run(waits()))
    await turns(4)

    assert runs[0].was_cancelled
    assert reached == ["code up to the next await"]


async def test_cancelling_an_ended_light_task_has_no_effect() -> None:
    async def waits_for_nothing() -> None:
        return

    run = Run(waits_for_nothing())
    run.task.cancel("a reason, as uvicorn gives one")
    await turns(2)

    assert run.ended == [None]


async def test_an_asyncio_task_can_wait_for_a_completion() -> None:
    async def waits(completion: Completion[int]) -> int:
        return await completion

    loop = asyncio.get_running_loop()
    good, bad, unwanted = Completion[int](), Completion[int](), Completion[int]()
    tasks = [loop.create_task(waits(one)) for one in (good, bad, unwanted)]
    await turns(1)
    loop.call_soon(good.set_result, 3)
    bad.set_exception(ValueError())
    tasks[2].cancel()
    await asyncio.wait(tasks)

    assert tasks[0].result() == 3
    assert isinstance(tasks[1].exception(), ValueError)
    assert tasks[2].cancelled()
    assert unwanted.done()
    assert not unwanted.cancel()
