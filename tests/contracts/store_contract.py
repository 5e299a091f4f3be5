"""What every atomic store has to do. A test class of a store inherits this one."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest

from flask_atm.protocols import AtomicGrantStore
from flask_atm.testing.clock import FakeClock

THREADS = 16
START = 1_700_000_000.0
END = START + 1000.0


def everywhere(job: Callable[[int], Any]) -> list[Any]:
    barrier = Barrier(THREADS)

    def run(number: int) -> Any:
        barrier.wait(10)
        return job(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, range(THREADS)))


class StoreContract:
    """Nine steps, each atomic, by the store's clock."""

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock(START)

    @pytest.fixture
    def store(self, clock: FakeClock) -> AtomicGrantStore:
        raise NotImplementedError

    # -- create, read

    def test_what_was_created_is_read(self, store: AtomicGrantStore) -> None:
        assert store.read("a") is None
        assert store.create("a", b"sealed", ends_at=END)
        stored = store.read("a")
        assert stored is not None
        assert (stored.sealed, stored.now) == (b"sealed", START)
        control = stored.control
        assert (control.version, control.sealed_version, control.ends_at) == (1, 1, END)
        assert (control.lease_owner, control.intent, control.doubt) == (None, None, False)

    def test_create_keeps_what_is_there(self, store: AtomicGrantStore) -> None:
        assert store.create("a", b"1", ends_at=END)
        assert not store.create("a", b"2", ends_at=END)
        assert self.sealed(store) == b"1"

    def test_one_of_many_creates_wins(self, store: AtomicGrantStore) -> None:
        made = everywhere(lambda number: store.create("a", b"%d" % number, ends_at=END))
        assert sorted(made) == [False] * (THREADS - 1) + [True]
        assert self.sealed(store) == b"%d" % made.index(True)

    def test_create_in_doubt(self, store: AtomicGrantStore) -> None:
        store.create("a", b"", ends_at=END, doubt=True)
        stored = store.read("a")
        assert stored is not None
        assert stored.control.doubt

    def test_arbitrary_bytes_survive(self, store: AtomicGrantStore) -> None:
        data = bytes(range(256)) * 40
        store.create("a", data, ends_at=END)
        assert self.sealed(store) == data

    # -- the end of a record

    def test_a_record_ends(self, store: AtomicGrantStore, clock: FakeClock) -> None:
        store.create("a", b"", ends_at=END, index=["i"])
        clock.set(END - 0.01)
        assert store.read("a")
        clock.set(END)
        assert store.read("a") is None
        assert store.begin("a", owner="x", expected_version=1, lease=9, intent=None).status == (
            "gone"
        )
        assert store.commit("a", b"", expected_version=1, commit_id="c") == "gone"
        assert store.update("a", b"", expected_version=1) == "gone"
        assert store.find("i") == []
        assert store.scan("", 10) == []
        assert not store.delete("a")

    def test_a_key_can_be_used_again_after_the_end(
        self, store: AtomicGrantStore, clock: FakeClock
    ) -> None:
        store.create("a", b"1", ends_at=END, index=["i"])
        clock.set(END + 1)
        assert store.create("a", b"2", ends_at=END + 9, index=["j"])
        assert self.sealed(store) == b"2"
        assert (store.find("i"), store.find("j")) == ([], ["a"])

    # -- begin

    def test_one_of_many_begins_wins(self, store: AtomicGrantStore) -> None:
        store.create("a", b"", ends_at=END)
        answers = everywhere(
            lambda number: store.begin(
                "a", owner=str(number), expected_version=1, lease=9, intent="h"
            )
        )
        held = [answer for answer in answers if answer.status == "held"]
        assert [(one.version, one.doubt, one.now) for one in held] == [(1, False, START)]
        assert {answer.status for answer in answers} == {"held", "busy"}
        assert {answer.wait for answer in answers if answer.status == "busy"} == {9}

    def test_begin_is_idempotent_for_its_owner(self, store: AtomicGrantStore) -> None:
        store.create("a", b"", ends_at=END)
        first = store.begin("a", owner="x", expected_version=1, lease=9, intent="h")
        assert store.begin("a", owner="x", expected_version=1, lease=9, intent="h") == first
        assert first.status == "held"
        assert not first.doubt

    def test_a_repeated_begin_keeps_the_doubt(
        self, store: AtomicGrantStore, clock: FakeClock
    ) -> None:
        store.create("a", b"", ends_at=END)
        store.begin("a", owner="x", expected_version=1, lease=9, intent="h")
        clock.advance(10)
        answers = [
            store.begin("a", owner="y", expected_version=1, lease=9, intent="h") for _ in range(2)
        ]
        assert [(one.status, one.version, one.doubt) for one in answers] == [("held", 2, True)] * 2

    def test_begin_upon_another_version_is_moved(self, store: AtomicGrantStore) -> None:
        store.create("a", b"", ends_at=END)
        store.update("a", b"", expected_version=1)
        assert store.begin("a", owner="x", expected_version=1, lease=9, intent="h").status == (
            "moved"
        )

    # -- commit

    def test_commit_stores_and_frees(self, store: AtomicGrantStore) -> None:
        store.create("a", b"1", ends_at=END, index=["i"])
        store.begin("a", owner="x", expected_version=1, lease=9, intent="h")
        assert store.commit("a", b"2", expected_version=1, commit_id="c") == "ok"
        stored = store.read("a")
        assert stored is not None
        control = stored.control
        assert (stored.sealed, control.version, control.sealed_version) == (b"2", 2, 2)
        assert (control.lease_owner, control.intent, control.doubt) == (None, None, False)
        assert control.ends_at == END
        assert store.find("i") == ["a"]

    def test_commit_is_recognised_when_repeated(self, store: AtomicGrantStore) -> None:
        store.create("a", b"1", ends_at=END)
        assert store.commit("a", b"2", expected_version=1, commit_id="c") == "ok"
        assert store.commit("a", b"3", expected_version=1, commit_id="c") == "ok"
        stored = store.read("a")
        assert stored is not None
        assert (stored.sealed, stored.control.version) == (b"2", 2)

    def test_commit_never_creates(self, store: AtomicGrantStore) -> None:
        assert store.commit("a", b"", expected_version=1, commit_id="c") == "gone"
        assert store.read("a") is None

    def test_one_of_many_commits_wins(self, store: AtomicGrantStore) -> None:
        store.create("a", b"", ends_at=END)
        answers = everywhere(
            lambda number: store.commit(
                "a", b"%d" % number, expected_version=1, commit_id=str(number)
            )
        )
        assert sorted(answers) == ["moved"] * (THREADS - 1) + ["ok"]
        assert self.sealed(store) == b"%d" % answers.index("ok")

    # -- update, abort

    def test_update_waits_for_the_lease_and_the_doubt(
        self, store: AtomicGrantStore, clock: FakeClock
    ) -> None:
        store.create("a", b"1", ends_at=END)
        store.begin("a", owner="x", expected_version=1, lease=9, intent="h")
        assert store.update("a", b"2", expected_version=1) == "busy"
        clock.advance(10)
        assert store.update("a", b"2", expected_version=1) == "busy"
        assert self.sealed(store) == b"1"
        store.commit("a", b"3", expected_version=1, commit_id="c")
        assert store.update("a", b"2", expected_version=1) == "moved"
        assert store.update("a", b"4", expected_version=2) == "ok"
        assert self.sealed(store) == b"4"

    def test_updates_are_not_lost(self, store: AtomicGrantStore) -> None:
        store.create("a", b"0", ends_at=END)

        def add_one(number: int) -> None:
            while True:
                stored = store.read("a")
                assert stored is not None
                new = b"%d" % (int(stored.sealed) + 1)
                if store.update("a", new, expected_version=stored.control.version) == "ok":
                    return

        everywhere(add_one)
        assert self.sealed(store) == b"%d" % THREADS

    def test_a_copy_of_a_lost_record_is_put_at_its_own_version(
        self, store: AtomicGrantStore
    ) -> None:
        assert store.create("a", b"copy", ends_at=END, index=["i"], doubt=True, version=7)
        stored = store.read("a")
        assert stored is not None
        assert (stored.control.version, stored.control.sealed_version) == (7, 7)
        assert stored.control.doubt
        assert store.find("i") == ["a"]
        assert store.commit("a", b"2", expected_version=7, commit_id="c") == "ok"

    def test_a_later_copy_goes_over_a_record_in_doubt(self, store: AtomicGrantStore) -> None:
        store.create("a", b"1", ends_at=END, index=["i"])
        store.begin("a", owner="x", expected_version=1, lease=9, intent="h")
        assert store.adopt("a", b"no", expected_version=1, version=1) == "moved"
        assert store.adopt("a", b"no", expected_version=2, version=5) == "moved"
        assert store.adopt("a", b"copy", expected_version=1, version=5) == "ok"
        stored = store.read("a")
        assert stored is not None
        control = stored.control
        assert (stored.sealed, control.version, control.sealed_version) == (b"copy", 5, 5)
        assert (control.lease_owner, control.intent, control.doubt) == (None, None, True)
        assert control.ends_at == END
        assert store.find("i") == ["a"]
        # Who refreshed meanwhile has to look again.
        assert store.commit("a", b"late", expected_version=1, commit_id="c") == "moved"

    def test_no_copy_goes_over_nothing_or_a_tombstone(self, store: AtomicGrantStore) -> None:
        assert store.adopt("a", b"copy", expected_version=1, version=5) == "gone"
        store.create("a", b"1", ends_at=END)
        store.delete("a", keep=b"outbox")
        assert store.adopt("a", b"copy", expected_version=2, version=5) == "gone"
        assert not store.create("a", b"copy", ends_at=END, doubt=True, version=5)
        assert self.sealed(store) == b"outbox"

    def test_abort_frees_the_lease_and_keeps_what_it_is_told(self, store: AtomicGrantStore) -> None:
        store.create("a", b"1", ends_at=END)
        store.begin("a", owner="x", expected_version=1, lease=9, intent="h")
        store.abort("a", owner="stranger", clear_intent=True)
        stored = store.read("a")
        assert stored is not None
        assert stored.control.lease_owner == "x"
        store.abort("a", owner="x", clear_intent=False, pause=5, failures=3, suspect="s", dead="d")
        stored = store.read("a")
        assert stored is not None
        control = stored.control
        assert (control.lease_owner, control.intent, control.doubt) == (None, "h", True)
        assert (control.retry_at, control.failures) == (START + 5, 3)
        assert (control.suspect, control.dead) == ("s", "d")
        assert stored.sealed == b"1"

    def test_abort_raises_the_version(self, store: AtomicGrantStore) -> None:
        store.create("a", b"1", ends_at=END)
        store.begin("a", owner="x", expected_version=1, lease=9, intent="h")
        store.abort("a", owner="x", clear_intent=True)
        begun = store.begin("a", owner="y", expected_version=1, lease=9, intent="h")
        assert begun.status == "moved"

    def test_abort_of_nothing_does_nothing(self, store: AtomicGrantStore) -> None:
        store.abort("a", owner="x", clear_intent=True)
        assert store.read("a") is None

    # -- delete and its tombstone

    def test_delete_removes(self, store: AtomicGrantStore) -> None:
        store.create("a", b"", ends_at=END, index=["i"])
        assert store.delete("a")
        assert not store.delete("a")
        assert store.read("a") is None
        assert store.find("i") == []

    def test_delete_with_something_to_keep_leaves_a_tombstone(
        self, store: AtomicGrantStore, clock: FakeClock
    ) -> None:
        store.create("a", b"grant", ends_at=END, index=["user"])
        store.begin("a", owner="x", expected_version=1, lease=9, intent="h")
        assert store.delete("a", keep=b"outbox", index=["outbox"])
        stored = store.read("a")
        assert stored is not None
        assert (stored.control.tombstone, stored.sealed) == (True, b"outbox")
        assert (store.find("user"), store.find("outbox")) == ([], ["a"])
        assert not store.create("a", b"", ends_at=END)
        assert store.begin("a", owner="x", expected_version=2, lease=9, intent="h").status == (
            "gone"
        )
        assert store.commit("a", b"late", expected_version=1, commit_id="c") == "gone"
        assert store.commit("a", b"late", expected_version=2, commit_id="c") == "gone"
        assert store.update("a", b"late", expected_version=2) == "gone"
        store.abort("a", owner="x", clear_intent=True)
        assert self.sealed(store) == b"outbox"
        clock.set(END)
        assert store.read("a") is None

    def test_a_tombstone_can_be_removed(self, store: AtomicGrantStore) -> None:
        store.create("a", b"", ends_at=END)
        store.delete("a", keep=b"outbox", index=["outbox"])
        assert not store.delete("a")
        assert store.read("a") is None
        assert store.find("outbox") == []

    def test_delete_of_one_version_leaves_any_other(self, store: AtomicGrantStore) -> None:
        store.create("a", b"1", ends_at=END)
        store.commit("a", b"2", expected_version=1, commit_id="c")
        assert not store.delete("a", keep=b"outbox 1", expected_version=1)
        assert self.sealed(store) == b"2"
        assert store.delete("a", keep=b"outbox 2", expected_version=2)
        assert not store.delete("a", expected_version=2)
        assert self.sealed(store) == b"outbox 2"
        assert not store.delete("none", expected_version=1)

    # -- find, scan

    def test_find_gives_at_most_what_was_asked_for(self, store: AtomicGrantStore) -> None:
        for number in range(5):
            store.create(str(number), b"", ends_at=END, index=["i", f"only {number}"])
        assert sorted(store.find("i")) == ["0", "1", "2", "3", "4"]
        assert len(store.find("i", 2)) == 2
        assert store.find("only 3") == ["3"]
        assert store.find("none") == []

    def test_scan_goes_through_all_in_order_of_the_keys(self, store: AtomicGrantStore) -> None:
        for key in ("c", "a", "e", "b", "d"):
            store.create(key, key.encode(), ends_at=END)
        store.delete("e", keep=b"outbox")
        pages = [store.scan("", 2), store.scan("b", 2), store.scan("d", 2), store.scan("e", 2)]
        assert [[key for key, _ in page] for page in pages] == [["a", "b"], ["c", "d"], ["e"], []]
        assert [stored.sealed for _, stored in pages[0]] == [b"a", b"b"]
        assert pages[2][0][1].control.tombstone

    def test_purge_removes_what_has_ended_in_batches(
        self, store: AtomicGrantStore, clock: FakeClock
    ) -> None:
        for number in range(5):
            store.create(str(number), b"", ends_at=END - number % 2, index=["i"])
        store.delete("4", keep=b"outbox", index=["outbox"])
        assert store.purge(10) == 0
        clock.set(END - 0.5)
        removed = [store.purge(1) for _ in range(3)]
        assert removed in ([1, 1, 0], [0, 0, 0])  # [0, 0, 0]: the store does it by itself
        assert sorted(store.find("i")) == ["0", "2"]
        assert store.find("outbox") == ["4"]
        clock.set(END)
        assert store.purge(10) in (3, 0)
        assert store.purge(10) == 0
        assert store.create("0", b"again", ends_at=END + 9)

    def test_nothing_shows_in_the_repr(self, store: AtomicGrantStore) -> None:
        store.create("key of a grant", b"sealed bytes", ends_at=END)
        assert "grant" not in repr(store).replace("grants.sqlite3", "")
        assert "sealed" not in repr(store)

    @staticmethod
    def sealed(store: AtomicGrantStore) -> bytes:
        stored = store.read("a")
        assert stored is not None
        return stored.sealed
