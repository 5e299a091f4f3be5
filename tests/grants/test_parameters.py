"""The times of the engine."""

import pytest

from flask_atm.grants.parameters import EngineParameters


def test_lease_and_wait_are_derived() -> None:
    parameters = EngineParameters()
    assert parameters.lease == 2 + 1 + 6 + (0.5 + 1) * 2 + 1 == 13
    assert parameters.wait == 13 + 6 + 2 == 21
    longer = EngineParameters(timeout=8, store_operation=2, store_retries=2)
    assert longer.lease == 2 + 1 + 8 + (0.5 + 2) * 3 + 1
    assert longer.wait == longer.lease + 8 + 2


def test_nobody_else_sends_while_a_holder_can() -> None:
    for parameters in (
        EngineParameters(),
        EngineParameters(timeout=25),
        EngineParameters().scaled(0.1),
    ):
        sending = parameters.send_window + parameters.doubt_wait + parameters.timeout
        assert sending < parameters.lease < parameters.wait


def test_scaled() -> None:
    parameters = EngineParameters().scaled(0.1)
    assert parameters.lease == pytest.approx(1.3)
    assert parameters.wait == pytest.approx(2.1)
    assert (parameters.store_retries, parameters.breaker_failures) == (1, 3)
    assert parameters.min_ttl == pytest.approx(0.5)


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("name", ["timeout", "send_window", "slack", "keep_interval", "backoff"])
def test_times_are_positive(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        EngineParameters(**{name: value})  # type: ignore[arg-type]


def test_no_retry_of_the_store_is_fine_and_polls_grow() -> None:
    assert EngineParameters(store_retries=0).lease == 11.5
    with pytest.raises(ValueError, match="poll_first"):
        EngineParameters(poll_first=1, poll_last=0.5)


@pytest.mark.parametrize(
    ("failures", "longest"), [(0, 2), (1, 4), (2, 8), (5, 64), (6, 120), (50, 120), (10**6, 120)]
)
def test_the_backoff_doubles_up_to_two_minutes_with_jitter(failures: int, longest: float) -> None:
    pauses = [EngineParameters().pause(failures) for _ in range(200)]
    assert longest / 2 <= min(pauses) < max(pauses) <= longest
    assert max(pauses) - min(pauses) > longest / 4


def test_retry_after_makes_a_pause_longer_never_shorter() -> None:
    parameters = EngineParameters()
    assert parameters.pause(0, 300) == 300
    assert 60 <= parameters.pause(9, 1) <= 120
    assert 1 <= parameters.pause(0, 0.0) <= 2
