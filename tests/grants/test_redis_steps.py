"""The Lua steps of the Redis store are those of ``control.py``: both, side by side."""

import itertools
from collections.abc import Iterator
from dataclasses import astuple, replace
from typing import Any
from urllib.parse import quote

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flask_atm.grants import control as steps
from flask_atm.grants.control import Begun, Control
from flask_atm.grants.stores import MemoryStore
from flask_atm.grants.stores.redis import RedisStore
from flask_atm.testing.clock import FakeClock
from tests.grants.redis_tools import clocked
from tests.servers.redis_server import RedisServer

NOW = 1_700_000_000.0
KEY = "flask_atm:grant:k"
OLD = b"old \0\xff sealed"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with RedisServer() as server:
        yield server.url


# -- every step on every kind of control

#: (seconds until the lease ends, seconds that it was taken for): lapsed, held, from a clock that
#: jumped, and the very edges of these. 1.1 times the length is no whole second for any but 10.
LEASES = ((0, 0), (-1, 3), (0, 3), (1, 3), (3, 3), (4, 3), (11, 10), (12, 10))


def controls(**choices: tuple[Any, ...]) -> Iterator[Control]:
    """All combinations, with the others as they are in a new record."""
    every: dict[str, tuple[Any, ...]] = {"version": (2,), "sealed_version": (1,)} | choices
    for owner, (left, lease) in itertools.product((None, "x", "y"), LEASES):
        for values in itertools.product(*every.values()):
            yield Control(
                lease_owner=owner,
                lease_until=NOW + left,
                lease=lease,
                ends_at=NOW + 999,
                **dict(zip(every, values, strict=True)),
            )


def written(control: Control) -> bytes:
    """A record as the store keeps it, by other code than the store's."""
    words = ["1", "before", "=i"]
    for name, value in zip(Control.__dataclass_fields__, astuple(control), strict=True):
        if name in ("lease_until", "lease", "retry_at", "ends_at"):
            words.append(str(round(value * 1000)))
        elif isinstance(value, str):
            words.append("=" + quote(value, safe=""))
        else:
            words.append("" if value is None else str(int(value)))
    return " ".join([*words, ""]).encode() + OLD


class SideBySide:
    """Runs steps on records in Redis, many at once, and in Python."""

    def __init__(self, url: str) -> None:
        self.store = clocked(url, FakeClock(NOW))
        self.client = redis.Redis.from_url(url)
        ready = self.store._link._get_ready()
        self.sha = ready.scripts["step"].sha
        self.client.script_load(ready.scripts["step"].script)
        self.asked: list[tuple[Any, ...]] = []
        self.expected: list[tuple[Any, list[bytes], bytes]] = []

    def ask(
        self, control: Control, step: str, *arguments: Any, answer: Any, new: Control | None
    ) -> None:
        self.asked.append((written(control), step, *arguments))
        sealed = b"new" if new is not None and step in ("commit", "update", "adopt") else OLD
        self.expected.append((answer, written(new or control).split(b" ", 17)[3:17], sealed))

    def compare(self) -> int:
        """Run all in Redis; give how many there were."""
        pipeline = self.client.pipeline(transaction=False)
        for value, *arguments in self.asked:
            pipeline.set(KEY, value)
            pipeline.evalsha(self.sha, 1, KEY, *arguments, round(NOW * 1000))
            pipeline.get(KEY)
        answers = iter(pipeline.execute())
        for (_, answer, value), asked, expected in zip(
            zip(answers, answers, answers, strict=True), self.asked, self.expected, strict=True
        ):
            words = value.split(b" ", 17)
            assert (answer, words[3:17], words[17]) == expected, asked
            assert words[2] == b"=i"
        count = len(self.asked)
        self.asked.clear()
        self.expected.clear()
        return count


def word(text: str | None) -> str:
    return "" if text is None else f"={text}"


def told(begun: Begun) -> list[Any]:
    """What the script answers for it."""
    now = round(begun.now * 1000)
    if begun.status == "held":
        return [b"held", now, begun.version, b"1" if begun.doubt else b"0"]
    wait = [round(begun.wait * 1000)] if begun.status == "busy" else []
    return [begun.status.encode(), now, *wait]


@pytest.fixture
def both(url: str) -> Iterator[SideBySide]:
    both = SideBySide(url)
    yield both
    both.client.close()
    both.store.close()


INTENTS, FLAGS = (None, "h"), (False, True)


def test_begin_on_every_control(both: SideBySide) -> None:
    for control in controls(intent=(*INTENTS, ""), doubt=FLAGS, tombstone=FLAGS, dead=(None, "d")):
        for version, intent in itertools.product((1, 2), (None, "h", "g")):
            begun, new = steps.begin(
                control, NOW, owner="x", expected_version=version, lease=13, intent=intent
            )
            both.ask(
                control,
                *("begin", "=x", version, 13_000, word(intent)),
                answer=told(begun),
                new=new,
            )
    assert both.compare() == 24 * 3 * 2 * 2 * 2 * 6


def test_commit_on_every_control(both: SideBySide) -> None:
    for control in controls(
        intent=INTENTS, doubt=FLAGS, tombstone=FLAGS, commit_id=(None, "c"), suspect=(None, "s")
    ):
        for version, commit_id in itertools.product((1, 2), "cd"):
            outcome, new = steps.commit(control, NOW, expected_version=version, commit_id=commit_id)
            both.ask(
                control,
                *("commit", version, word(commit_id), "new"),
                answer=outcome.encode(),
                new=new,
            )
    assert both.compare() == 24 * 2**5 * 4


def test_update_on_every_control(both: SideBySide) -> None:
    for control in controls(intent=(*INTENTS, ""), doubt=FLAGS, tombstone=FLAGS):
        for version in (1, 2):
            outcome, new = steps.update(control, NOW, expected_version=version)
            sent = ("update", "call", version, "", "new")
            both.ask(control, *sent, answer=[outcome.encode()], new=new)
    assert both.compare() == 24 * 3 * 2 * 2 * 2


def test_adopt_on_every_control(both: SideBySide) -> None:
    for control in controls(intent=INTENTS, doubt=FLAGS, tombstone=FLAGS, commit_id=(None, "c")):
        for expected, version in itertools.product((1, 2), (1, 2, 3, 9)):
            outcome, new = steps.adopt(control, NOW, expected_version=expected, version=version)
            both.ask(
                control,
                *("adopt", "call", expected, version, "new"),
                answer=outcome.encode(),
                new=new,
            )
    assert both.compare() == 24 * 2**4 * 8


def test_abort_on_every_control(both: SideBySide) -> None:
    arguments = list(itertools.product("xz", FLAGS, (0, 5, 301), (None, "", "s"), (None, "", "d")))
    for control in controls(
        intent=INTENTS, doubt=FLAGS, tombstone=FLAGS, suspect=(None, "s"), dead=(None, "e")
    ):
        if control.lease_until != NOW + 1 or control.lease_owner == "y":
            continue  # abort does not look at the lease
        for owner, clear, pause, suspect, dead in arguments:
            new = steps.abort(
                control,
                NOW,
                owner=owner,
                clear_intent=clear,
                pause=pause,
                failures=4,
                suspect=suspect,
                dead=dead,
            )
            sent = (f"={owner}", int(clear), round(pause * 1000), 4, word(suspect), word(dead))
            both.ask(control, "abort", *sent, answer=b"", new=new)
    assert both.compare() == 2 * 2**5 * 108


def test_bury_on_every_control(both: SideBySide) -> None:
    for control in controls(intent=INTENTS, doubt=FLAGS, tombstone=FLAGS, version=(1, 7)):
        both.store._link.run_all([("SET", KEY, written(control))])
        assert both.store.delete("k", keep=b"kept") is not control.tombstone
        stored = both.store.read("k")
        assert stored is not None
        assert (stored.control, stored.sealed) == (steps.bury(control), b"kept")


def test_a_millisecond_is_not_lost(url: str) -> None:
    clock = FakeClock(NOW)
    store = clocked(url, clock, prefix="ms")
    store.create("k", b"", ends_at=NOW + 100.001)
    assert store.begin("k", owner="x", expected_version=1, lease=9.999, intent="h").version == 1
    clock.set(NOW + 9.998)
    assert store.begin("k", owner="y", expected_version=1, lease=9, intent="h").wait == 0.001
    clock.set(NOW + 9.999)
    begun = store.begin("k", owner="y", expected_version=1, lease=9, intent="h")
    assert begun == Begun(status="held", now=NOW + 9.999, version=2, doubt=True)
    clock.set(NOW + 100)
    assert store.read("k") is not None
    clock.set(NOW + 100.001)
    assert store.read("k") is None
    store.close()


# -- random schedules: the same steps on both stores

KEYS = st.sampled_from(["a", "b", "b c"])
OWNERS = st.sampled_from(["x", "y"])
TEXTS = st.sampled_from([None, "", "h", "g é,%"])
VERSIONS = st.integers(1, 5)
SEALED = st.binary(max_size=8)
INDEX = st.lists(st.sampled_from(["i", "j k", "é,="]), max_size=2, unique=True)
SECONDS = st.sampled_from([0, 1, 2, 4, 11, 12, 60, 299, 300])

STEP = st.one_of(
    st.tuples(st.just("wait"), SECONDS),
    st.tuples(
        st.just("create"),
        st.fixed_dictionaries(
            {
                "key": KEYS,
                "sealed": SEALED,
                "ends_in": st.sampled_from([0, 1, 20, 700]),
                "index": INDEX,
                "doubt": st.booleans(),
                "version": VERSIONS,
            }
        ),
    ),
    st.tuples(
        st.just("begin"),
        st.fixed_dictionaries(
            {
                "key": KEYS,
                "owner": OWNERS,
                "expected_version": VERSIONS,
                "lease": st.sampled_from([1, 3, 10]),
                "intent": TEXTS,
            }
        ),
    ),
    st.tuples(
        st.just("commit"),
        st.fixed_dictionaries(
            {
                "key": KEYS,
                "sealed": SEALED,
                "expected_version": VERSIONS,
                "commit_id": st.sampled_from(["1", "2", "3"]),
            }
        ),
    ),
    st.tuples(
        st.just("update"),
        st.fixed_dictionaries(
            {
                "key": KEYS,
                "sealed": SEALED,
                "expected_version": VERSIONS,
                "index": st.none() | INDEX,
            }
        ),
    ),
    st.tuples(
        st.just("adopt"),
        st.fixed_dictionaries(
            {"key": KEYS, "sealed": SEALED, "expected_version": VERSIONS, "version": VERSIONS}
        ),
    ),
    st.tuples(
        st.just("abort"),
        st.fixed_dictionaries(
            {
                "key": KEYS,
                "owner": OWNERS,
                "clear_intent": st.booleans(),
                "pause": st.sampled_from([0, 5, 300, 900]),
                "failures": st.integers(0, 9),
                "suspect": TEXTS,
                "dead": TEXTS,
            }
        ),
    ),
    st.tuples(
        st.just("delete"),
        st.fixed_dictionaries(
            {
                "key": KEYS,
                "keep": st.none() | SEALED,
                "index": INDEX,
                "expected_version": st.none() | VERSIONS,
            }
        ),
    ),
)


class Pair:
    """The two stores, over one clock."""

    def __init__(self, url: str) -> None:
        self.clock = FakeClock(NOW)
        self.memory = MemoryStore(clock=self.clock)
        self.redis = clocked(url, self.clock, prefix="pair")
        self.client = redis.Redis.from_url(url)

    def do(self, step: str, arguments: Any) -> None:
        if step == "wait":
            self.clock.advance(arguments)
            return
        sent = dict(arguments)
        if "ends_in" in sent:
            sent["ends_at"] = self.clock() + sent.pop("ends_in")
        answers = [getattr(store, step)(**sent) for store in (self.memory, self.redis)]
        assert answers[0] == answers[1]

    def compare(self) -> None:
        for key in ("a", "b", "b c"):
            assert self.memory.read(key) == self.redis.read(key)
        for entry in ("i", "j k", "é,="):
            assert sorted(self.memory.find(entry)) == sorted(self.redis.find(entry))
        for after in ("", "a", "b"):
            assert self.memory.scan(after, 2) == self.redis.scan(after, 2)

    def start(self) -> None:
        self.memory = MemoryStore(clock=self.clock)
        self.client.flushdb()
        self.clock.set(NOW)


@pytest.fixture(scope="module")
def pair(url: str) -> Iterator[Pair]:
    pair = Pair(url)
    yield pair
    pair.redis.close()
    pair.client.close()


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(schedule=st.lists(STEP, max_size=30))
def test_random_schedules_end_alike(pair: Pair, schedule: list[tuple[str, Any]]) -> None:
    pair.start()
    for step, arguments in schedule:
        pair.do(step, arguments)
        pair.compare()


def test_a_control_of_everything_is_read_as_it_was_written(url: str) -> None:
    control = Control(
        version=12,
        sealed_version=11,
        lease_owner="o %,= é\n",
        lease_until=NOW + 1.5,
        lease=13.001,
        intent="",
        doubt=True,
        suspect="s",
        dead="d",
        commit_id="c",
        retry_at=NOW + 0.25,
        failures=3,
        ends_at=253402300799.0,
        tombstone=True,
    )
    store: RedisStore = clocked(url, FakeClock(NOW), prefix="flask_atm")
    with redis.Redis.from_url(url) as client:
        client.set(KEY, written(control))
    stored = store.read("k")
    assert stored is not None
    assert (stored.control, stored.sealed) == (control, OLD)
    changed = replace(control, tombstone=False, lease_owner=None)
    with redis.Redis.from_url(url) as client:
        client.set(KEY, written(changed))
    store.begin("k", owner="n", expected_version=12, lease=9, intent="")
    stored = store.read("k")
    assert stored is not None
    assert stored.control.ends_at == 253402300799.0
    store.close()
