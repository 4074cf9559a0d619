"""Which models of a router get requests, and when another one may be loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from inference_engine_proxy_server.backends.base import ModelReport
from inference_engine_proxy_server.fleet.backend_load import BackendLoad
from inference_engine_proxy_server.fleet.loaded_models import LoadedModels, SwapRules
from inference_engine_proxy_server.fleet.model_load import ModelLoad
from inference_engine_proxy_server.processes.shared_leases import SharedLeases
from support.clocked_pool import Clock

TURN = 10.0
LOADED = ModelReport("loaded", in_memory=True, is_ready=True, capacity=2)
LOADING = ModelReport("loading", in_memory=True, is_ready=False, capacity=2)
SLEEPING = ModelReport("sleeping", in_memory=True, is_ready=False, capacity=2)
UNLOADED = ModelReport("unloaded", in_memory=False, is_ready=False, capacity=4)


class Router:
    """The models ``a``, ``b``, ``c`` of a router; those in ``loaded`` are loaded at first."""

    def __init__(
        self,
        loaded: str = "a",
        places: float | None = 1,
        shared: SharedLeases | None = None,
        worker: int = 0,
        clock: Clock | None = None,
    ) -> None:
        self.clock = clock or Clock()
        self.whole = BackendLoad()
        self.models = LoadedModels("http://r", self.whole, SwapRules(TURN, self.clock, shared, worker))
        self.models.adopt_list([{"id": "a", "aliases": ["alpha"]}, {"id": "b"}, {"id": "c"}])
        self.places = places
        self.report(dict.fromkeys(loaded, LOADED))

    def report(self, reports: dict[str, ModelReport], asked_ago: float = 0.0, capacity: int | None = None) -> None:
        """The router reports these models, and all others as unloaded."""
        every = {name: reports.get(name, UNLOADED) for name in "abc"}
        self.clock.now += 0.001
        self.models.adopt(every, self.places, capacity, 0, self.clock() - asked_ago)

    def __getitem__(self, name: str) -> ModelLoad:
        load = self.models.find(name)
        assert load is not None
        return load

    def begin(self, name: str, requests: int = 1) -> None:
        for _ in range(requests):
            self[name].leases += 1
            self.models.review()

    def end(self, name: str, requests: int = 1) -> None:
        for _ in range(requests):
            self[name].leases -= 1
            self.models.review()

    def wait(self, name: str, request: object = 0) -> None:
        self[name].begin_wait(request, self.clock())
        self.models.review()

    def leave(self, name: str, request: object = 0) -> None:
        self[name].end_wait(request)
        self.models.review()

    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        self.models.review()

    @property
    def admitted(self) -> str:
        """The models that get requests."""
        return "".join(load.model for load in self.models.all if load.is_admitted)


def test_each_model_has_its_own_slots_and_the_backend_has_the_sum() -> None:
    router = Router(loaded="ab", places=2)
    router.begin("a", 2)
    router.begin("b")
    assert (router["a"].total, router["a"].limit) == (2, 2)
    assert (router["b"].total, router["b"].limit) == (1, 2)
    assert router.whole.leases == 3
    assert router["alpha"] is router["a"]
    assert router["c"].limit == 4


def test_the_configured_capacity_counts_for_each_model() -> None:
    router = Router()
    router.report({"a": LOADED}, capacity=7)
    assert [load.limit for load in router.models.all] == [7, 7, 7]


def test_requests_that_came_from_elsewhere_are_load_of_their_model() -> None:
    router = Router()
    router.begin("a")
    router.models.begin_poll()
    router.end("a")
    router.report({"a": ModelReport("loaded", True, True, 2, requests_processing=2.0, requests_waiting=1.0)})
    assert (router["a"].foreign, router["a"].total) == (2, 2)  # one of the three was ours when the poll was sent
    router.models.forget_reported_load()
    assert router["a"].total == 0


def test_an_idle_model_makes_room_at_once() -> None:
    router = Router()
    assert router.admitted == "abc"
    router.begin("b")
    assert (router["a"].in_memory, router["b"].in_memory, router.models.loads) == (False, True, 1)


@pytest.mark.parametrize("places", [math.inf, 3])
def test_models_that_all_fit_take_no_turns(places: float) -> None:
    router = Router(places=places)
    for name in "abc":
        router.begin(name)
        router.wait(name)
    router.pass_time(100)
    assert router.admitted == "abc"


def test_a_running_request_is_never_ended_by_another_model() -> None:
    router = Router()
    router.begin("a")
    router.wait("b")
    assert router.admitted == "a"
    router.pass_time(1000)
    assert router.admitted == ""
    router.end("a")
    assert router.admitted == "b"


def test_a_model_keeps_its_place_while_it_has_requests_but_for_one_turn_at_most() -> None:
    router = Router()
    router.begin("a")
    router.wait("b")
    router.pass_time(TURN - 1)
    router.wait("a", "another")
    router.end("a")
    assert router.admitted == "a"  # its next request waits
    router.begin("a")
    router.leave("a", "another")
    router.pass_time(1)
    assert router.admitted == ""
    router.end("a")
    assert router.admitted == "b"


def test_a_model_that_was_loaded_has_a_turn_that_begins_when_it_is_ready() -> None:
    router = Router()
    router.begin("a")
    router.wait("b")
    router.pass_time(TURN)
    router.end("a")
    router.wait("a")
    router.begin("b")
    router.leave("b")
    router.pass_time(60)  # it loads
    assert router.admitted == "b"
    router.begin("b")
    router.end("b")  # the first answer: it has been loaded
    router.pass_time(TURN - 1)
    assert router.admitted == "b"
    router.pass_time(1)
    assert router.admitted == ""
    router.end("b")
    assert router.admitted == "a"


def test_the_report_that_a_model_is_loaded_begins_its_turn_too() -> None:
    router = Router()
    router.begin("b")
    router.wait("a")
    router.pass_time(60)
    router.report({"b": LOADING})
    router.pass_time(60)
    router.report({"b": LOADED})
    assert router.admitted == "b"
    router.pass_time(TURN)
    assert router.admitted == ""


def test_the_model_with_the_oldest_request_is_next() -> None:
    router = Router()
    router.begin("a")
    router.wait("c")
    router.pass_time(1)
    router.wait("b")
    router.end("a")
    assert router.admitted == "ac"
    router.leave("c")
    assert router.admitted == "ab"


def test_without_waiting_requests_no_turn_ends() -> None:
    router = Router()
    router.begin("a")
    router.wait("b")
    router.pass_time(TURN)
    assert router.admitted == ""
    router.leave("b")  # its client has left
    assert router.admitted == "a"


def test_the_least_recently_used_model_makes_room_and_only_if_it_is_idle() -> None:
    router = Router(loaded="ab", places=2)
    router.begin("a")
    router.begin("b")
    router.end("b")
    router.wait("c")
    # Older builds would end a, which was used before b, in the middle of its request.
    assert router.admitted == "ab"
    router.pass_time(TURN)
    assert router.admitted == "b"
    router.end("a")
    assert router.admitted == "bc"
    router.begin("c")
    assert [load.in_memory for load in router.models.all] == [False, True, True]


def test_a_free_place_is_used_at_once() -> None:
    router = Router(loaded="a", places=2)
    router.begin("a")
    assert router.models.must_make_room_for(router["b"]) is False
    router.begin("b")
    assert (router.admitted, router.models.must_make_room_for(router["c"])) == ("ab", True)


def test_a_report_that_is_older_than_a_request_does_not_undo_it() -> None:
    router = Router()
    router.begin("b")
    router.end("b")
    router.pass_time(1)
    router.report({"a": LOADED}, asked_ago=2.0)
    assert (router["a"].in_memory, router["b"].in_memory) == (False, True)
    router.report({"a": LOADED})
    assert (router["a"].in_memory, router["b"].in_memory) == (True, False)


def test_while_a_model_is_being_replaced_the_old_one_gets_no_requests() -> None:
    router = Router()
    router.begin("b")
    router.pass_time(1)
    router.report({"a": LOADED})  # the router has not ended it yet
    router.wait("a")
    assert router.admitted == "b"


def test_a_report_without_the_number_of_places_leaves_it_as_it_was() -> None:
    router = Router()
    router.begin("a")
    router.places = None
    router.report({"a": LOADED})
    assert router.admitted == "a"


def test_a_model_that_is_listed_twice_is_one_model() -> None:
    router = Router()
    router.models.adopt_list([{"id": "d"}, {"id": "d"}])
    assert list(router.models.all) == [router["d"]]


def test_a_sleeping_model_takes_a_place_until_another_one_needs_it() -> None:
    router = Router(loaded="")
    router.report({"a": SLEEPING})
    assert (router["a"].in_memory, router["a"].ready_since, router.admitted) == (True, math.inf, "abc")


def test_requests_from_elsewhere_delay_a_swap_for_one_turn_only() -> None:
    router = Router()
    router.report({"a": ModelReport("loaded", True, True, 2, requests_processing=1.0)})
    router.wait("b")
    assert router.admitted == "a"
    router.pass_time(TURN)
    assert router.admitted == "b"


def test_models_that_the_router_lists_no_more_are_forgotten_and_the_others_keep_their_load() -> None:
    router = Router()
    router.begin("a")
    router.begin("b")
    router.models.adopt_list([{"id": "a"}, {"id": "d"}])
    assert router["a"].leases == 1
    assert (router.models.find("b"), router.models.find("alpha")) == (None, None)
    assert router["d"].leases == 0


def of_workers(loaded: str = "a") -> Sequence[Router]:
    """The same router as two workers see it."""
    shared, clock = SharedLeases(2), Clock()
    return [Router(loaded, shared=shared, worker=worker, clock=clock) for worker in range(2)]


def test_workers_see_each_others_requests_and_who_waits() -> None:
    one, two = of_workers()
    one.begin("a")
    two.wait("b")
    assert (two.admitted, two["a"].total, one["b"].waiting) == ("a", 1, 1)
    one.models.review()  # it notices that a request waits in the other worker
    one.pass_time(TURN)
    assert one.admitted == ""
    one.end("a")
    two.models.review()
    assert two.admitted == "b"


def test_the_counts_of_a_worker_that_has_ended_are_removed() -> None:
    shared = SharedLeases(2)
    one, two = (Router(shared=shared, worker=worker) for worker in range(2))
    one.begin("a")
    one.wait("b")
    two.begin("a")
    shared.clear(0, ["http://r"])
    assert (two["a"].total, two["b"].waiting) == (1, 0)
