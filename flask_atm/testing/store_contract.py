"""What every atomic store has to do, as tests: for ours, and for yours.

A test class of your store inherits :class:`StoreContract` and says how the store is made.
"""

from collections.abc import Iterable
from threading import Event
from typing import ClassVar, Protocol

import pytest

from flask_atm.grants.batches import delete_many, read_many
from flask_atm.grants.control import Control
from flask_atm.protocols import AtomicGrantStore, Doomed
from flask_atm.testing.clock import FakeClock
from flask_atm.testing.store_races import StoreRaces

__all__ = ["StoreClock", "StoreContract"]

#: Seconds: no test lasts as long.
_LONG = 600.0
#: Instants are kept in milliseconds.
_MS = 0.0011
_FAR = 253402300799.0


class _Clock(Protocol):
    def __call__(self) -> float: ...

    def advance(self, seconds: float) -> object: ...


class StoreClock:
    """The clock that a store has of its own, such as that of a database server.

    For a :class:`StoreContract` whose store cannot be given a clock::

        @pytest.fixture
        def clock(self, store):
            return StoreClock(store)

    :param store: it is asked what time it is.
    """

    def __init__(self, store: AtomicGrantStore) -> None:
        self._store = store

    def __call__(self) -> float:
        return self._store.begin("none", owner="x", expected_version=1, lease=1.0, intent=None).now

    def advance(self, seconds: float) -> float:
        """Wait until the clock of the store is so many seconds ahead, and a little more."""
        end = self() + seconds + _MS
        while (now := self()) < end:
            Event().wait(min(0.02, end - now))
        return now


class StoreContract(StoreRaces):
    """The steps of :class:`~flask_atm.protocols.AtomicGrantStore`, one by one and all at once.

    Inherit it in a test class, and override these fixtures:

    ``store``
        An empty store. Give it the fixture ``clock``.
    ``clock``
        What the store takes for the present: a :class:`FakeClock`, unless the store has a clock of
        its own. Then make it a :class:`StoreClock`, and set :attr:`short` to about 0.3.
    ``open_store``
        A function that opens one and the same store in any process: it is sent to others, so it
        has to be one of a module, or a ``functools.partial`` of such a one. Here the real clock is
        used. A store that lives in one process only sets :attr:`one_process` instead.

    Where one of these tests fails, people are signed out, or get tokens after they left.
    """

    #: Seconds: leases and lives that a test waits for the end of.
    short: ClassVar[float] = 9.0

    @pytest.fixture
    def clock(self) -> _Clock:
        """Give what the store takes for the present."""
        return FakeClock(1_700_000_000.0)

    @pytest.fixture
    def store(self, clock: _Clock) -> AtomicGrantStore:
        """Give an empty store."""
        raise NotImplementedError("override the fixture store")

    # -- create, read

    def test_what_was_created_is_read(self, store: AtomicGrantStore, clock: _Clock) -> None:
        assert store.read("a") is None
        ends_at = round(clock() + _LONG, 3)
        before = clock()
        assert store.create("a", b"sealed", ends_at=ends_at)
        stored = store.read("a")
        assert stored is not None
        assert stored.sealed == b"sealed"
        assert before - _MS <= stored.now <= clock() + _MS
        control = stored.control
        assert control == Control(ends_at=control.ends_at)
        assert control.ends_at == pytest.approx(ends_at, abs=_MS)

    def test_create_keeps_what_is_there(self, store: AtomicGrantStore, clock: _Clock) -> None:
        assert store.create("a", b"1", ends_at=clock() + _LONG, index=["i"])
        assert not store.create("a", b"2", ends_at=clock() + _LONG, index=["j"])
        assert _sealed(store) == b"1"
        assert (store.find("i"), store.find("j")) == (["a"], [])

    def test_create_in_doubt(self, store: AtomicGrantStore, clock: _Clock) -> None:
        store.create("a", b"", ends_at=clock() + _LONG, doubt=True)
        assert _control(store).doubt

    def test_a_copy_of_a_lost_record_is_put_at_its_own_version(
        self, store: AtomicGrantStore, clock: _Clock
    ) -> None:
        ends_at = clock() + _LONG
        assert store.create("a", b"copy", ends_at=ends_at, index=["i"], doubt=True, version=7)
        control = _control(store)
        assert (control.version, control.sealed_version, control.doubt) == (7, 7, True)
        assert store.find("i") == ["a"]
        assert store.commit("a", b"2", expected_version=7, commit_id="c") == "ok"

    @pytest.mark.parametrize(
        "sealed",
        [
            b"",
            b"\0",
            b"0",
            b"=1",
            b" two words and a line\r\n ",
            "é".encode("latin-1"),
            bytes(range(256)),
            bytes(range(256)) * 400,
        ],
        ids=["nothing", "null", "digit", "equals", "spaces", "latin-1", "all", "100 kB"],
    )
    def test_sealed_bytes_come_back_as_they_were(
        self, store: AtomicGrantStore, clock: _Clock, sealed: bytes
    ) -> None:
        store.create("a", sealed, ends_at=clock() + _LONG)
        assert _sealed(store) == sealed
        store.update("a", sealed + b"2", expected_version=1)
        assert _sealed(store) == sealed + b"2"
        store.commit("a", sealed[::-1], expected_version=2, commit_id="c")
        assert _sealed(store) == sealed[::-1]
        store.delete("a", keep=sealed)
        assert _sealed(store) == sealed

    # -- the end of a record

    def test_a_record_ends(self, store: AtomicGrantStore, clock: _Clock) -> None:
        ends_at = clock() + self.short
        store.create("a", b"", ends_at=ends_at, index=["i"])
        clock.advance(self.short * 0.9)
        there = store.read("a") is not None
        assert there or clock() >= ends_at - _MS
        clock.advance(self.short * 0.1 + _MS)
        assert store.read("a") is None
        assert _begin(store, "x") == "gone"
        assert store.commit("a", b"", expected_version=1, commit_id="c") == "gone"
        assert store.update("a", b"", expected_version=1) == "gone"
        assert store.adopt("a", b"", expected_version=1, version=5) == "gone"
        store.abort("a", owner="x", clear_intent=True)
        assert store.find("i") == []
        assert store.scan("", 10) == []
        assert not store.delete("a")

    def test_no_step_changes_the_end(self, store: AtomicGrantStore, clock: _Clock) -> None:
        ends_at = clock() + _LONG
        store.create("a", b"", ends_at=ends_at)
        store.update("a", b"", expected_version=1)
        store.begin("a", owner="x", expected_version=2, lease=60, intent="h")
        store.abort("a", owner="x", clear_intent=True)
        store.commit("a", b"", expected_version=3, commit_id="c")
        assert _control(store).ends_at == pytest.approx(ends_at, abs=_MS)
        store.adopt("a", b"", expected_version=4, version=9)
        assert _control(store).version == 9
        assert _control(store).ends_at == pytest.approx(ends_at, abs=_MS)
        store.delete("a", keep=b"outbox")
        assert _control(store).ends_at == pytest.approx(ends_at, abs=_MS)

    def test_an_end_that_is_far_away(self, store: AtomicGrantStore) -> None:
        assert store.create("a", b"", ends_at=_FAR)
        assert _control(store).ends_at == pytest.approx(_FAR, abs=_MS)

    def test_a_key_can_be_used_again_after_the_end(
        self, store: AtomicGrantStore, clock: _Clock
    ) -> None:
        store.create("a", b"1", ends_at=clock() + self.short, index=["i"])
        clock.advance(self.short + _MS)
        assert store.create("a", b"2", ends_at=clock() + _LONG, index=["j"])
        assert _sealed(store) == b"2"
        assert (store.find("i"), store.find("j")) == ([], ["a"])

    # -- begin

    def test_begin_takes_the_lease(self, store: AtomicGrantStore, clock: _Clock) -> None:
        store.create("a", b"", ends_at=clock() + _LONG)
        before = clock()
        begun = store.begin("a", owner="x", expected_version=1, lease=60, intent="h")
        after = clock()
        assert (begun.status, begun.version, begun.doubt) == ("held", 1, False)
        assert before - _MS <= begun.now <= after + _MS
        control = _control(store)
        assert (control.version, control.lease_owner, control.intent) == (1, "x", "h")
        assert control.lease == pytest.approx(60, abs=_MS)
        assert before + 60 - _MS <= control.lease_until <= after + 60 + _MS
        other = store.begin("a", owner="y", expected_version=1, lease=60, intent="h")
        assert other.status == "busy"
        assert 60 - (clock() - before) - _MS <= other.wait <= 60 + _MS

    def test_begin_is_idempotent_for_its_owner(
        self, store: AtomicGrantStore, clock: _Clock
    ) -> None:
        store.create("a", b"", ends_at=clock() + _LONG)
        first, again = (
            store.begin("a", owner="x", expected_version=1, lease=60, intent="h") for _ in range(2)
        )
        assert (first.status, first.version, first.doubt) == ("held", 1, False)
        assert (again.status, again.version, again.doubt) == ("held", 1, False)

    def test_a_lapsed_lease_is_taken_over_in_doubt(
        self, store: AtomicGrantStore, clock: _Clock
    ) -> None:
        store.create("a", b"", ends_at=clock() + _LONG)
        store.begin("a", owner="x", expected_version=1, lease=self.short, intent="h")
        clock.advance(self.short + _MS)
        answers = [
            store.begin("a", owner="y", expected_version=1, lease=60, intent="h") for _ in range(2)
        ]
        # The second answer is that to a repetition: the first one was lost on its way.
        assert [(one.status, one.version, one.doubt) for one in answers] == [("held", 2, True)] * 2
        assert store.commit("a", b"late", expected_version=1, commit_id="x") == "moved"

    def test_another_refresh_token_than_the_one_in_flight_is_not_in_doubt(
        self, store: AtomicGrantStore, clock: _Clock
    ) -> None:
        store.create("a", b"", ends_at=clock() + _LONG)
        store.begin("a", owner="x", expected_version=1, lease=self.short, intent="h")
        clock.advance(self.short + _MS)
        begun = store.begin("a", owner="y", expected_version=1, lease=60, intent="another")
        assert (begun.status, begun.version, begun.doubt) == ("held", 2, False)

    def test_a_lease_of_a_clock_that_jumped_is_void(
        self, store: AtomicGrantStore, clock: _Clock
    ) -> None:
        if not isinstance(clock, FakeClock):
            pytest.skip("this clock cannot be set back")
        store.create("a", b"", ends_at=clock() + _LONG)
        store.begin("a", owner="x", expected_version=1, lease=60, intent="h")
        clock.advance(-_LONG)
        assert _begin(store, "y") == "held"

    def test_begin_upon_another_version_is_moved(
        self, store: AtomicGrantStore, clock: _Clock
    ) -> None:
        store.create("a", b"", ends_at=clock() + _LONG)
        store.update("a", b"", expected_version=1)
        assert _begin(store, "x") == "moved"
        assert _control(store).lease_owner is None

    # -- commit

    def test_commit_stores_and_frees(self, store: AtomicGrantStore, clock: _Clock) -> None:
        store.create("a", b"1", ends_at=clock() + _LONG, index=["i"])
        _begin(store, "dead", lease=self.short)
        clock.advance(self.short + _MS)
        _begin(store, "x")
        store.abort("a", owner="x", clear_intent=False, pause=5, failures=3, suspect="h")
        begun = store.begin("a", owner="x", expected_version=3, lease=60, intent="h")
        assert (begun.status, begun.doubt) == ("held", True)
        assert store.commit("a", b"2", expected_version=3, commit_id="c") == "ok"
        assert _sealed(store) == b"2"
        control = _control(store)
        assert control == Control(
            version=4, sealed_version=4, commit_id="c", ends_at=control.ends_at
        )
        assert store.find("i") == ["a"]

    def test_commit_is_recognised_when_repeated(
        self, store: AtomicGrantStore, clock: _Clock
    ) -> None:
        store.create("a", b"1", ends_at=clock() + _LONG)
        assert store.commit("a", b"2", expected_version=1, commit_id="c") == "ok"
        assert store.commit("a", b"3", expected_version=1, commit_id="c") == "ok"
        assert _sealed(store) == b"2"
        assert _control(store).version == 2

    def test_commit_never_creates(self, store: AtomicGrantStore) -> None:
        assert store.commit("a", b"", expected_version=1, commit_id="c") == "gone"
        assert store.read("a") is None
        assert store.update("a", b"", expected_version=1) == "gone"
        assert _begin(store, "x") == "gone"
        store.abort("a", owner="x", clear_intent=True)
        assert store.read("a") is None
        assert store.scan("", 10) == []

    def test_commit_is_fenced_by_the_version_and_not_by_the_lease(
        self, store: AtomicGrantStore, clock: _Clock
    ) -> None:
        store.create("a", b"1", ends_at=clock() + _LONG)
        _begin(store, "x", lease=self.short)
        clock.advance(self.short + _MS)
        # Late, but nobody came meanwhile: what the server gave is not lost.
        assert store.commit("a", b"2", expected_version=1, commit_id="c") == "ok"
        assert store.commit("a", b"3", expected_version=1, commit_id="d") == "moved"
        assert _sealed(store) == b"2"

    # -- update, adopt, abort

    def test_update_waits_for_the_lease_and_the_doubt(
        self, store: AtomicGrantStore, clock: _Clock
    ) -> None:
        store.create("a", b"1", ends_at=clock() + _LONG)
        _begin(store, "x", lease=self.short)
        assert store.update("a", b"2", expected_version=1) == "busy"
        clock.advance(self.short + _MS)
        # The lease has lapsed; what was sent under it is still out.
        assert store.update("a", b"2", expected_version=1) == "busy"
        assert _sealed(store) == b"1"
        store.commit("a", b"3", expected_version=1, commit_id="c")
        assert store.update("a", b"2", expected_version=1) == "moved"
        assert store.update("a", b"4", expected_version=2) == "ok"
        assert _sealed(store) == b"4"
        assert (_control(store).version, _control(store).sealed_version) == (3, 3)

    def test_update_can_replace_the_index_entries(
        self, store: AtomicGrantStore, clock: _Clock
    ) -> None:
        store.create("a", b"1", ends_at=clock() + _LONG, index=["old", "both"])
        store.create("b", b"1", ends_at=clock() + _LONG, index=["old"])
        for version, index in ((2, ["new"]), (1, ["both", "new"])):
            store.update("a", b"2", expected_version=version, index=index)
        assert _sealed(store) == b"2"
        found = {name: sorted(store.find(name)) for name in ("old", "both", "new")}
        assert found == {"old": ["b"], "both": ["a"], "new": ["a"]}
        assert store.update("a", b"3", expected_version=2) == "ok"
        assert store.find("new") == ["a"]
        _begin(store, "x", version=3)
        assert store.update("a", b"4", expected_version=3, index=["late"]) == "busy"
        assert (store.find("late"), store.find("new")) == ([], ["a"])
        store.delete("a")
        assert store.update("a", b"5", expected_version=3, index=["late"]) == "gone"
        assert (store.find("late"), store.find("new")) == ([], [])

    def test_a_tombstone_can_be_given_other_bytes_and_another_index(
        self, store: AtomicGrantStore, clock: _Clock
    ) -> None:
        ends_at = clock() + _LONG
        store.create("a", b"1", ends_at=ends_at, index=["user"])
        store.delete("a", keep=b"kept", index=["old"])
        version = _control(store).version
        assert not store.delete("a", keep=b"no", index=["new"], expected_version=version - 1)
        assert (_sealed(store), store.find("old")) == (b"kept", ["a"])
        # No record was removed by this.
        assert not store.delete("a", keep=b"anew", index=["new"], expected_version=version)
        assert _sealed(store) == b"anew"
        assert _control(store).tombstone
        assert _control(store).ends_at == pytest.approx(ends_at, abs=_MS)
        assert (store.find("old"), store.find("new")) == ([], ["a"])

    def test_update_keeps_pauses_and_deaths(self, store: AtomicGrantStore, clock: _Clock) -> None:
        store.create("a", b"1", ends_at=clock() + _LONG)
        _begin(store, "x")
        store.abort("a", owner="x", clear_intent=True, pause=60, failures=3, suspect="s", dead="d")
        before = _control(store)
        assert store.update("a", b"2", expected_version=2) == "ok"
        after = _control(store)
        assert after.retry_at == before.retry_at
        assert (after.failures, after.suspect, after.dead) == (3, "s", "d")

    def test_a_later_copy_goes_over_a_record_in_doubt(
        self, store: AtomicGrantStore, clock: _Clock
    ) -> None:
        store.create("a", b"1", ends_at=clock() + _LONG, index=["i"])
        _begin(store, "x")
        assert store.adopt("a", b"no", expected_version=1, version=1) == "moved"
        assert store.adopt("a", b"no", expected_version=2, version=5) == "moved"
        assert store.adopt("a", b"copy", expected_version=1, version=5) == "ok"
        assert _sealed(store) == b"copy"
        control = _control(store)
        assert control == Control(version=5, sealed_version=5, doubt=True, ends_at=control.ends_at)
        assert store.find("i") == ["a"]
        # Who refreshed meanwhile has to look again.
        assert store.commit("a", b"late", expected_version=1, commit_id="c") == "moved"

    def test_no_copy_goes_over_nothing_or_a_tombstone(
        self, store: AtomicGrantStore, clock: _Clock
    ) -> None:
        assert store.adopt("a", b"copy", expected_version=1, version=5) == "gone"
        store.create("a", b"1", ends_at=clock() + _LONG)
        store.delete("a", keep=b"outbox")
        assert store.adopt("a", b"copy", expected_version=2, version=5) == "gone"
        assert not store.create("a", b"copy", ends_at=clock() + _LONG, doubt=True, version=5)
        assert _sealed(store) == b"outbox"

    def test_abort_frees_the_lease_and_keeps_what_it_is_told(
        self, store: AtomicGrantStore, clock: _Clock
    ) -> None:
        store.create("a", b"1", ends_at=clock() + _LONG)
        _begin(store, "x")
        store.abort("a", owner="stranger", clear_intent=True)
        assert _control(store).lease_owner == "x"
        before = clock()
        store.abort("a", owner="x", clear_intent=False, pause=5, failures=3, suspect="s", dead="d")
        after = clock()
        control = _control(store)
        assert (control.lease_owner, control.intent, control.doubt) == (None, "h", True)
        assert before + 5 - _MS <= control.retry_at <= after + 5 + _MS
        assert (control.failures, control.suspect, control.dead) == (3, "s", "d")
        assert _sealed(store) == b"1"

    def test_abort_clears_its_own_intent_and_no_doubt(
        self, store: AtomicGrantStore, clock: _Clock
    ) -> None:
        store.create("a", b"", ends_at=clock() + _LONG)
        _begin(store, "x")
        store.abort("a", owner="x", clear_intent=True)
        control = _control(store)
        assert (control.lease_owner, control.intent, control.doubt) == (None, None, False)
        _begin(store, "y", version=2, lease=self.short)
        clock.advance(self.short + _MS)
        assert _begin(store, "z", version=2) == "held"
        store.abort("a", owner="z", clear_intent=True)
        assert _control(store).doubt

    def test_abort_raises_the_version(self, store: AtomicGrantStore, clock: _Clock) -> None:
        store.create("a", b"1", ends_at=clock() + _LONG)
        _begin(store, "x")
        store.abort("a", owner="x", clear_intent=True)
        assert _begin(store, "y") == "moved"

    def test_who_is_suspected_twice_is_dead(self, store: AtomicGrantStore, clock: _Clock) -> None:
        store.create("a", b"1", ends_at=clock() + _LONG)
        for version in (1, 2):
            assert _control(store).dead is None
            assert _begin(store, "x", version=version) == "held"
            store.abort("a", owner="x", clear_intent=True, suspect="h")
        assert _control(store).dead == "h"

    # -- delete and its tombstone

    def test_delete_removes(self, store: AtomicGrantStore, clock: _Clock) -> None:
        store.create("a", b"", ends_at=clock() + _LONG, index=["i"])
        assert store.delete("a")
        assert not store.delete("a")
        assert store.read("a") is None
        assert store.find("i") == []

    def test_delete_with_something_to_keep_leaves_a_tombstone(
        self, store: AtomicGrantStore, clock: _Clock
    ) -> None:
        store.create("a", b"grant", ends_at=clock() + _LONG, index=["user"])
        _begin(store, "x")
        assert store.delete("a", keep=b"outbox", index=["outbox"])
        assert (_control(store).tombstone, _sealed(store)) == (True, b"outbox")
        assert (store.find("user"), store.find("outbox")) == ([], ["a"])
        assert not store.create("a", b"", ends_at=clock() + _LONG)
        assert _begin(store, "x", version=2) == "gone"
        assert store.commit("a", b"late", expected_version=1, commit_id="c") == "gone"
        assert store.commit("a", b"late", expected_version=2, commit_id="c") == "gone"
        assert store.update("a", b"late", expected_version=2) == "gone"
        store.abort("a", owner="x", clear_intent=True)
        assert (_control(store).version, _sealed(store)) == (2, b"outbox")

    def test_a_tombstone_ends_with_its_grant(self, store: AtomicGrantStore, clock: _Clock) -> None:
        store.create("a", b"", ends_at=clock() + self.short)
        store.delete("a", keep=b"outbox", index=["outbox"])
        clock.advance(self.short + _MS)
        assert store.read("a") is None
        assert store.find("outbox") == []
        assert store.create("a", b"again", ends_at=clock() + _LONG)

    def test_a_tombstone_can_be_removed(self, store: AtomicGrantStore, clock: _Clock) -> None:
        store.create("a", b"", ends_at=clock() + _LONG)
        store.delete("a", keep=b"outbox", index=["outbox"])
        assert not store.delete("a")
        assert store.read("a") is None
        assert store.find("outbox") == []

    def test_delete_of_one_version_leaves_any_other(
        self, store: AtomicGrantStore, clock: _Clock
    ) -> None:
        store.create("a", b"1", ends_at=clock() + _LONG)
        store.commit("a", b"2", expected_version=1, commit_id="c")
        assert not store.delete("a", keep=b"outbox 1", expected_version=1)
        assert _sealed(store) == b"2"
        assert store.delete("a", keep=b"outbox 2", expected_version=2)
        assert not store.delete("a", expected_version=2)
        assert _sealed(store) == b"outbox 2"
        assert not store.delete("none", expected_version=1)

    # -- find, scan, purge

    def test_find_gives_at_most_what_was_asked_for(
        self, store: AtomicGrantStore, clock: _Clock
    ) -> None:
        for number in range(5):
            index = ["i", f"only {number}"]
            store.create(str(number), b"", ends_at=clock() + _LONG, index=index)
        assert sorted(store.find("i")) == ["0", "1", "2", "3", "4"]
        assert len(store.find("i", 2)) == 2
        assert store.find("only 3") == ["3"]
        assert store.find("none") == []

    def test_scan_goes_through_all_in_order_of_the_keys(
        self, store: AtomicGrantStore, clock: _Clock
    ) -> None:
        for key in ("c", "a", "e", "b", "d"):
            store.create(key, key.encode(), ends_at=clock() + _LONG)
        store.delete("e", keep=b"outbox")
        pages = [store.scan("", 2), store.scan("b", 2), store.scan("d", 2), store.scan("e", 2)]
        assert [_keys(page) for page in pages] == [["a", "b"], ["c", "d"], ["e"], []]
        assert [stored.sealed for _, stored in pages[0]] == [b"a", b"b"]
        assert pages[2][0][1].control.tombstone

    def test_purge_removes_what_has_ended_in_batches(
        self, store: AtomicGrantStore, clock: _Clock
    ) -> None:
        now = clock()
        for number in range(5):
            life = self.short if number % 2 else _LONG
            store.create(str(number), b"", ends_at=now + life, index=["i"])
        store.delete("4", keep=b"outbox", index=["outbox"])
        clock.advance(self.short + _MS)
        removed = [store.purge(1) for _ in range(3)]
        # None: the store does it by itself. One: a step of before has removed the other one.
        assert removed in ([1, 1, 0], [1, 0, 0], [0, 0, 0])
        assert sorted(store.find("i")) == ["0", "2"]
        assert store.find("outbox") == ["4"]
        assert _keys(store.scan("", 10)) == ["0", "2", "4"]
        assert store.create("1", b"again", ends_at=clock() + _LONG)

    def test_purge_leaves_what_lives(self, store: AtomicGrantStore, clock: _Clock) -> None:
        store.create("a", b"", ends_at=clock() + _LONG)
        store.create("b", b"", ends_at=clock() + _LONG)
        store.delete("b", keep=b"outbox")
        assert store.purge(10) == 0
        assert _keys(store.scan("", 10)) == ["a", "b"]

    # -- many at once; where a store has no step of its own for that, its others are taken

    def test_many_are_read_in_the_order_asked_for(
        self, store: AtomicGrantStore, clock: _Clock
    ) -> None:
        for key in ("c", "a", "b"):
            store.create(key, key.encode(), ends_at=clock() + _LONG)
        store.delete("b", keep=b"outbox")
        store.create("d", b"", ends_at=clock() + self.short)
        clock.advance(self.short + _MS)
        found = read_many(store, ["b", "none", "c", "d", "a"])
        assert [one and one.sealed for one in found] == [b"outbox", None, b"c", None, b"a"]
        tombstone, _, record, *_ = found
        assert tombstone is not None
        assert tombstone.control.tombstone
        assert record is not None
        assert record.control == Control(ends_at=record.control.ends_at)
        assert abs(record.now - clock()) < _LONG
        assert read_many(store, []) == []

    def test_many_are_removed_each_by_itself(self, store: AtomicGrantStore, clock: _Clock) -> None:
        ends_at = clock() + _LONG
        for key in "abcde":
            store.create(key, b"1", ends_at=ends_at, index=["i", f"only {key}"])
        store.commit("c", b"2", expected_version=1, commit_id="c")
        store.delete("d", keep=b"old", index=["outbox"])
        doomed = [
            Doomed(key="a", keep=b"outbox a", index=["outbox"], expected_version=1),
            Doomed(key="none", keep=b"nothing", index=["outbox"]),
            Doomed(key="c", keep=b"moved", index=["outbox"], expected_version=1),
            Doomed(key="b", index=["outbox"], ends_at=ends_at),
            Doomed(key="d"),
        ]
        assert delete_many(store, doomed) == [True, False, False, True, False]
        assert [(key, one.sealed) for key, one in store.scan("", 9)] == [
            ("a", b"outbox a"),
            ("c", b"2"),
            ("e", b"1"),
        ]
        assert sorted(store.find("i")) == ["c", "e"]
        assert (store.find("only a"), store.find("only b"), store.find("outbox")) == ([], [], ["a"])
        assert store.commit("a", b"late", expected_version=1, commit_id="x") == "gone"
        assert delete_many(store, []) == []

    # -- what it shows

    def test_nothing_shows_in_the_repr(self, store: AtomicGrantStore, clock: _Clock) -> None:
        store.create("name-of-a-record", b"its-sealed-bytes", ends_at=clock() + _LONG)
        assert "name-of-a-record" not in repr(store)
        assert "its-sealed-bytes" not in repr(store)


def _begin(store: AtomicGrantStore, owner: str, *, version: int = 1, lease: float = 60.0) -> str:
    begun = store.begin("a", owner=owner, expected_version=version, lease=lease, intent="h")
    return begun.status


def _sealed(store: AtomicGrantStore) -> bytes:
    stored = store.read("a")
    assert stored is not None
    return stored.sealed


def _control(store: AtomicGrantStore) -> Control:
    stored = store.read("a")
    assert stored is not None
    return stored.control


def _keys(page: Iterable[tuple[str, object]]) -> list[str]:
    return [key for key, _ in page]
