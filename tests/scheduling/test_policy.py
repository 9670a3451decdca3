"""Policies, and what the guard makes of bad ones."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest

from fastgen_jax.errors import ConfigError
from fastgen_jax.request import Request
from fastgen_jax.scheduling.policy import Fcfs, Priority, RankedPolicy, RequestView, get_policy
from fastgen_jax.scheduling.policy_guard import PolicyGuard
from fastgen_jax.scheduling.waiting import WaitingQueue
from tests.strategies import make_request


def make_requests(*priorities: int) -> list[Request]:
    requests = [make_request(str(i), 2, priority=p) for i, p in enumerate(priorities)]
    for i, request in enumerate(requests):
        request.arrival_index = i
    return requests


def ids(requests: Sequence[RequestView]) -> str:
    return "".join(request.request_id for request in requests)


class Answers:
    """A policy with fixed answers."""

    def __init__(self, order: object, victim: object = None) -> None:
        self.answers = order, victim

    def order(self, candidates: Sequence[RequestView]) -> Sequence[RequestView]:
        return self.answers[0]  # type: ignore[return-value]

    def choose_victim(self, running: Sequence[RequestView]) -> RequestView:
        return self.answers[1]  # type: ignore[return-value]


def test_fcfs_goes_by_arrival() -> None:
    requests = make_requests(0, 5, -1)
    assert ids(Fcfs().order(requests[::-1])) == "012"
    assert Fcfs().choose_victim(requests[::-1]) is requests[2]


def test_priority_goes_by_value_then_arrival() -> None:
    requests = make_requests(1, 0, 1, -2)
    assert ids(Priority().order(requests[::-1])) == "3102"
    assert Priority().choose_victim(requests) is requests[2]


def test_policies_by_name_or_object() -> None:
    assert isinstance(get_policy("fcfs"), Fcfs)
    assert isinstance(get_policy("priority"), Priority)
    mine = Answers(())
    assert get_policy(mine) is mine
    assert not isinstance(mine, RankedPolicy)
    with pytest.raises(ConfigError, match=r"'lifo'.*known ones are fcfs, priority"):
        get_policy("lifo")
    with pytest.raises(ConfigError, match="order and choose_victim"):
        get_policy(object())  # type: ignore[arg-type]


def test_a_bad_order_becomes_a_permutation() -> None:
    requests = make_requests(0, 0, 0, 0)
    foreign = make_request("x")
    guard = PolicyGuard(Answers([foreign, requests[2], requests[2], "?", requests[1]]))
    assert ids(guard.order(requests[::-1])) == "2103"


def test_a_policy_that_raises_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    requests = make_requests(0, 0, 0)
    guard = PolicyGuard(Answers(None))
    with caplog.at_level(logging.ERROR):
        assert ids(guard.order(requests[::-1])) == "012"
        assert ids(guard.order(requests[::-1])) == "012"
    assert len(caplog.records) == 1
    assert "raised in order" in caplog.text


def test_a_bad_victim_becomes_the_newest() -> None:
    requests = make_requests(0, 0, 0)
    assert PolicyGuard(Answers((), requests[1])).choose_victim(requests) is requests[1]
    assert PolicyGuard(Answers((), make_request("x"))).choose_victim(requests) is requests[2]
    assert PolicyGuard(Answers(())).choose_victim(requests) is requests[2]


def test_the_queue_keeps_the_policys_order() -> None:
    requests = make_requests(1, 0, 1, -2)
    queue = WaitingQueue(PolicyGuard(Priority()))
    for request in requests:
        queue.add(request)
    assert ids(list(queue.in_order())) == "3102"
    assert queue.first() is requests[3]
    queue.remove(requests[1])
    queue.remove(requests[2])
    assert ids(list(queue.in_order())) == "30"
    queue.add(requests[1])
    assert ids(list(queue.in_order())) == "310"


def test_a_policy_without_ranks_orders_the_whole_queue() -> None:
    requests = make_requests(0, 0, 0)
    queue = WaitingQueue(PolicyGuard(Answers([requests[1], requests[2], requests[0]])))
    for request in requests:
        queue.add(request)
    assert ids(list(queue.in_order())) == "120"


class CountingAnswers(Answers):
    """Counts how often it is asked for an order."""

    num_asked = 0

    def order(self, candidates: Sequence[RequestView]) -> Sequence[RequestView]:
        self.num_asked += 1
        return candidates[::-1]


def test_a_policy_without_ranks_is_asked_again_only_when_something_changed() -> None:
    requests = make_requests(0, 0, 0)
    policy = CountingAnswers(())
    queue = WaitingQueue(PolicyGuard(policy))
    for request in requests[:2]:
        queue.add(request)
    for _ in range(5):
        assert ids(list(queue.in_order())) == "10"
    assert policy.num_asked == 1
    queue.add(requests[2])
    assert ids(list(queue.in_order())) == "210"
    queue.remove(requests[1])
    assert ids(list(queue.in_order())) == "20"
    queue.forget_order()
    assert ids(list(queue.in_order())) == "20"
    assert policy.num_asked == 4
