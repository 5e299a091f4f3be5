"""N2: the engine's pure part under all interleavings of three actors and two faults.

What must never happen: two requests with one refresh token outside the rule for lost answers; a
rotated refresh token that is lost while the store is up; a token that is served after a logout;
a version that does not grow; a user signed out for nothing; an actor that never ends.
`pytest tests/model -m slow` looks at all of it, with `-s` to see how much that is.
"""

from dataclasses import dataclass

import pytest

from tests.model.explore import Explored, Found, explore
from tests.model.machine import Machine
from tests.model.mutants import EXPIRED, GET, LOGOUT, MUTANTS, OTHER_SLOT, STALE, WRITE, Mutant
from tests.model.rules import Rules
from tests.model.world import Actor, initial

REJECTS = Actor(rejects=1)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Who does what, and how much may go wrong."""

    actors: tuple[Actor, ...]
    faults: int
    left: float = EXPIRED
    grace: bool = False

    def __str__(self) -> str:
        names = {GET: "get", WRITE: "write", LOGOUT: "logout", OTHER_SLOT: "get-b"}
        parts = [names.get(actor, "reject") for actor in self.actors]
        parts += ["stale" if self.left > 0 else "expired", "grace" if self.grace else "strict"]
        return "-".join([*parts, str(self.faults)])

    def explore(self, rules: Rules, faults: frozenset[str] = Machine.FAULTS) -> Explored:
        start = initial(*self.actors, left=self.left, faults=self.faults, grace=self.grace)
        return explore(Machine(rules, faults), start)


TRIOS = (
    (GET, GET, GET),
    (GET, GET, OTHER_SLOT),
    (GET, OTHER_SLOT, WRITE),
    (GET, GET, LOGOUT),
    (REJECTS, GET, OTHER_SLOT),
)
BOUNDED = [
    Scenario(actors=(GET, GET), faults=2),
    Scenario(actors=(GET, GET), faults=1, left=STALE, grace=True),
    Scenario(actors=(GET, OTHER_SLOT), faults=1, left=STALE),
    Scenario(actors=(REJECTS, GET), faults=1, left=STALE),
    Scenario(actors=(GET, WRITE), faults=1, left=STALE),
    Scenario(actors=(GET, LOGOUT), faults=1, left=STALE),
    *(Scenario(actors=actors, faults=0, left=STALE) for actors in TRIOS),
    Scenario(actors=(GET, GET, GET), faults=1),
    Scenario(actors=(GET, GET, GET), faults=1, grace=True),
    Scenario(actors=(GET, GET, LOGOUT), faults=1),
    Scenario(actors=(GET, GET, WRITE), faults=1),
]
FULL = [
    Scenario(actors=actors, faults=2, left=left, grace=grace)
    for actors in TRIOS
    for left in (EXPIRED, STALE)
    for grace in (False, True)
]


@pytest.mark.parametrize("scenario", BOUNDED, ids=str)
def test_n2_nothing_that_must_not_happen_can_be_reached(scenario: Scenario) -> None:
    explored = scenario.explore(Rules())
    print(f"{scenario}: {explored}")
    assert explored.ends


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scenario", FULL, ids=str)
def test_n2_nothing_that_must_not_happen_can_be_reached_by_two_faults(scenario: Scenario) -> None:
    explored = scenario.explore(Rules())
    print(f"{scenario}: {explored}")
    assert explored.states > 100_000


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_without_any_one_rule_something_goes_wrong(mutant: Mutant) -> None:
    scenario = Scenario(
        actors=mutant.actors,
        faults=mutant.most if mutant.faults else 0,
        left=mutant.left,
        grace=mutant.grace,
    )
    scenario.explore(Rules(), mutant.faults)
    with pytest.raises(Found) as found:
        scenario.explore(mutant.rules, mutant.faults)
    print(found.value)
    assert mutant.wrong in found.value.what
    assert found.value.trace


def test_a_violation_is_shown_by_the_shortest_way_to_it() -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.rule == "begin holds a lease")
    with pytest.raises(Found) as found:
        Scenario(actors=(GET, GET), faults=0).explore(mutant.rules)
    assert str(found.value).splitlines() == [
        "refresh token 1 is sent again while somebody waits for its answer, or has it",
        "  actors: get login, get login; faults: 0; server: strict",
        "  1. A: reads",
        "  2. A: begin: held",
        "  3. A: write: refresh token 1",
        "  4. B: reads",
        "  5. B: begin: held, in doubt",
        "  6. B: doubt: it is still so",
    ]
