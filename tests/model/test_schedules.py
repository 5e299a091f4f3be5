"""N3: deterministic schedules, with the real engine; model and code say the same at every step."""

from collections.abc import Sequence

import pytest

from flask_atm.grants import refresh
from tests.model.machine import Machine, Move
from tests.model.mutants import EXPIRED, GET, OTHER_SLOT, STALE
from tests.model.replay import Replay, Times, covering, schedules
from tests.model.rules import Rules
from tests.model.world import Actor, State, initial

#: What a thread can be made to suffer; what a store can is the business of other tests.
FAULTS = frozenset({"crash", "stop", "lost answer", "503", "logout", "writer", "exit"})
Schedule = list[tuple[State, Move]]


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Times:
    times = Times()
    monkeypatch.setattr(refresh, "time", times)
    return times


def replay(start: State, times: Times, found: Sequence[Schedule]) -> None:
    for schedule in found:
        try:
            Replay(start, times).run(schedule)
        except AssertionError as error:
            steps = "\n".join(str(move) for _, move in schedule)
            raise AssertionError(f"{error}\nthe schedule:\n{steps}") from error


@pytest.mark.parametrize("left", [EXPIRED, STALE])
@pytest.mark.parametrize("other", [GET, OTHER_SLOT, Actor(rejects=1)], ids=["same", "b", "rejects"])
def test_n3_every_interleaving_of_two_callers_ends_as_the_model_says(
    left: float, other: Actor, times: Times
) -> None:
    start = initial(GET, other, left=left, faults=0)
    found = list(schedules(Machine(Rules(), frozenset()), start))
    print(len(found))
    assert len(found) > 4
    replay(start, times, found)


@pytest.mark.parametrize("left", [EXPIRED, STALE])
def test_n3_every_step_of_the_model_with_one_fault_is_made_by_the_engine(
    left: float, times: Times
) -> None:
    start = initial(GET, GET, left=left, faults=1)
    found = list(covering(Machine(Rules(), FAULTS), start))
    print(len(found))
    replay(start, times, found)


def test_n3_a_model_that_says_something_else_is_found_out(times: Times) -> None:
    """So that the comparison is no formality."""
    start = initial(GET, left=EXPIRED, faults=1)
    machine = Machine(Rules(unknown_keeps_intent=False), frozenset({"lost answer"}))
    with pytest.raises(AssertionError, match=r"^A: abort"):
        replay(start, times, list(covering(machine, start)))
