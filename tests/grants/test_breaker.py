"""What a process remembers of a token endpoint."""

import logging

import pytest

from flask_atm.errors import TokenEndpointError
from flask_atm.grants.breaker import Breaker, Refusals
from flask_atm.grants.parameters import EngineParameters
from flask_atm.testing.clock import FakeClock


def make() -> tuple[Breaker, FakeClock]:
    clock = FakeClock(1000)
    return Breaker("p", EngineParameters(), monotonic=clock), clock


def test_three_failures_in_a_row_open_it() -> None:
    breaker, _ = make()
    for _ in range(2):
        assert breaker.enter()
        breaker.failed("timeout")
    breaker.succeeded()
    for _ in range(3):
        assert breaker.left() == 0
        assert breaker.enter()
        breaker.failed("timeout")
    assert breaker.left() == 5
    assert not breaker.enter()
    assert breaker.last == "timeout"


def test_open_it_lets_one_attempt_through_per_pause() -> None:
    breaker, clock = make()
    for _ in range(3):
        breaker.failed("reset")
    for _ in range(3):
        clock.advance(5)
        assert breaker.left() == 0
        assert [breaker.enter() for _ in range(10)] == [True] + [False] * 9
    breaker.failed("reset")
    assert breaker.left() == 5


def test_an_attempt_that_was_none_is_given_back() -> None:
    breaker, clock = make()
    breaker.withdraw()
    assert breaker.enter()
    for _ in range(3):
        breaker.failed("reset")
    # Another one has opened it meanwhile.
    breaker.withdraw()
    assert breaker.left() == 5
    clock.advance(5)
    assert breaker.enter()
    assert not breaker.enter()
    breaker.withdraw()
    assert breaker.enter()
    breaker.failed("reset")
    breaker.withdraw()
    assert not breaker.enter()


def test_an_answer_closes_it() -> None:
    breaker, clock = make()
    for _ in range(3):
        breaker.failed("reset")
    clock.advance(5)
    assert breaker.enter()
    breaker.succeeded()
    assert [breaker.enter() for _ in range(10)] == [True] * 10
    breaker.failed("reset")
    assert breaker.enter()


def test_b12_a_refused_client_is_tried_once_per_30_s(caplog: pytest.LogCaptureFixture) -> None:
    breaker, clock = make()
    assert breaker.enter()
    error = TokenEndpointError("invalid_client", status=401, provider="first")
    breaker.refused_client(error)
    for _ in range(4):
        assert not breaker.enter()
        clock.advance(29.9)
        assert not breaker.enter()
        clock.advance(0.1)
        # While that one is on its way nobody else tries.
        assert [breaker.enter() for _ in range(10)] == [True] + [False] * 9
        refusal = breaker.refusal("second")
        assert refusal is not None
        assert (refusal.error, refusal.status, refusal.provider) == (
            "invalid_client",
            401,
            "second",
        )
        breaker.refused_client(error)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 3  # at 0, 60 and 120 s
    assert "ATM_CLIENT_SECRET" in errors[0].getMessage()
    clock.advance(30)
    assert breaker.refusal("second") is None
    assert breaker.enter()
    breaker.succeeded()
    assert breaker.refusal("second") is None
    assert [breaker.enter() for _ in range(3)] == [True] * 3


def test_a12_refusals_are_remembered_for_a_while_by_grant_and_slot() -> None:
    clock = FakeClock(1000)
    refusals = Refusals(60, monotonic=clock)
    error = TokenEndpointError("invalid_target")
    refusals.remember("k", "s", error)
    refusals.remember("k", "t", error, pause=2)
    for slot in ("s", "t"):
        # For each caller an error of its own, without the frames of the others.
        refused = [refusals.get("k", slot) for _ in range(2)]
        assert {(type(one), str(one)) for one in refused} == {(type(error), str(error))}
        assert len({id(one) for one in (*refused, error)}) == 3
    assert refusals.get("k", "") is None
    assert refusals.get("l", "s") is None
    clock.advance(2)
    assert refusals.get("k", "t") is None
    clock.advance(57.9)
    assert refusals.get("k", "s") is not None
    clock.advance(0.1)
    assert refusals.get("k", "s") is None


def test_refusals_do_not_grow_without_limit() -> None:
    refusals = Refusals(60)
    for number in range(5000):
        refusals.remember(str(number), "", TokenEndpointError("invalid_scope"))
    assert len(vars(refusals)["_errors"]) <= 1024
