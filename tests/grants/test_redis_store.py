"""The Redis store: the contract, in every way to reach a server, and what is special about it."""

import gc
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import redis

from flask_atm.errors import ConfigurationError, StoreError
from flask_atm.grants.parameters import EngineParameters
from flask_atm.grants.stores import BY_SCHEME
from flask_atm.protocols import AtomicGrantStore
from flask_atm.stores import RedisStore
from flask_atm.testing.clock import FakeClock
from flask_atm.testing.store_contract import StoreContract
from tests.grants.redis_tools import clocked
from tests.oauth.test_back_channel import Authority
from tests.servers import silent_url
from tests.servers.proxy import Delay, FaultProxy, HalfOpen
from tests.servers.redis_server import RedisClusterServers, RedisServer
from tests.servers.tls_front import tls_in_front

START = 1_700_000_000.0
END = START + 1000.0
PASSWORD = "canary-8c1f0d62b7"


@pytest.fixture(scope="module")
def _server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def server(_server: RedisServer) -> RedisServer:
    with redis.Redis.from_url(_server.url) as client:
        client.flushall()
        client.script_flush()
    return _server


@pytest.fixture(scope="module")
def cluster_url() -> Iterator[str]:
    with RedisClusterServers() as servers:
        yield servers.nodes[0].url


@pytest.fixture
def client(server: RedisServer) -> Iterator[Any]:
    with redis.Redis.from_url(server.url) as client:
        yield client


@pytest.fixture
def store(server: RedisServer) -> Iterator[RedisStore]:
    store = RedisStore(server.url)
    yield store
    store.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(START)


def soon(seconds: float = 100) -> float:
    return time.time() + seconds


def hashed(number: int) -> str:
    return sha256(b"%d" % number).hexdigest()


def begin(store: AtomicGrantStore, key: str = "a", version: int = 1) -> str:
    return store.begin(key, owner="x", expected_version=version, lease=9, intent="h").status


# -- the contract


class TestRedisStore(StoreContract):
    @pytest.fixture
    def store(self, server: RedisServer, clock: FakeClock) -> Iterator[AtomicGrantStore]:
        store = clocked(server.url, clock)
        yield store
        store.close()

    @pytest.fixture
    def open_store(self, server: RedisServer) -> Callable[[], AtomicGrantStore]:
        return partial(RedisStore, server.url)


class TestRedisStoreOverAClientThatDecodes(StoreContract):
    @pytest.fixture(params=[2, 3])
    def store(
        self, server: RedisServer, clock: FakeClock, request: pytest.FixtureRequest
    ) -> Iterator[AtomicGrantStore]:
        with redis.Redis.from_url(
            server.url, decode_responses=True, protocol=request.param
        ) as client:
            yield clocked(client, clock)

    @pytest.fixture
    def open_store(self, server: RedisServer) -> Callable[[], AtomicGrantStore]:
        return partial(over_a_client_that_decodes, server.url)


class WithItsClient(RedisStore):
    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self.client = client

    def close(self) -> None:
        self.client.close()


def over_a_client_that_decodes(url: str) -> RedisStore:
    return WithItsClient(redis.Redis.from_url(url, decode_responses=True))


class TestRedisStoreOnACluster(StoreContract):
    @pytest.fixture
    def cluster(self, cluster_url: str) -> Iterator[Any]:
        client = redis.RedisCluster.from_url(cluster_url)
        client.flushall(target_nodes=redis.RedisCluster.PRIMARIES)
        client.script_flush()
        yield client
        close_cluster(client)

    @pytest.fixture
    def store(self, cluster: Any, clock: FakeClock) -> AtomicGrantStore:
        return clocked(cluster, clock)

    @pytest.fixture
    def open_store(self, cluster: Any, cluster_url: str) -> Callable[[], AtomicGrantStore]:
        return partial(on_a_cluster, cluster_url)

    def test_the_records_lie_on_both_nodes(self, store: AtomicGrantStore, cluster: Any) -> None:
        for number in range(20):
            assert store.create(hashed(number), b"", ends_at=END, index=[hashed(-number)])
        sizes = cluster.dbsize(target_nodes=redis.RedisCluster.PRIMARIES)
        assert sizes == 41
        assert len(store.scan("", 100)) == 20
        assert store.find(hashed(-3)) == [hashed(3)]


class WithItsCluster(WithItsClient):
    def close(self) -> None:
        close_cluster(self.client)


def on_a_cluster(url: str) -> RedisStore:
    return WithItsCluster(redis.RedisCluster.from_url(url))


def close_cluster(client: Any) -> None:
    # Its own close() leaves the connections of its nodes to the garbage collector.
    for node in client.get_nodes():
        if node.redis_connection is not None:
            node.redis_connection.connection_pool.disconnect()
    client.close()


# -- the end of a grant, and what an index keeps


def test_c6_every_key_ends_with_its_grant(store: RedisStore, client: Any) -> None:
    ends_at = round(soon(), 3)
    store.create("a", b"", ends_at=ends_at, index=["i"])
    store.create("b", b"", ends_at=ends_at - 50, index=["i"])
    store.begin("a", owner="x", expected_version=1, lease=9, intent="h")
    store.commit("a", b"", expected_version=1, commit_id="c")
    store.delete("b", keep=b"", index=["o"])
    ends = {key.decode(): client.pexpiretime(key) / 1000 for key in client.scan_iter()}
    assert ends == {
        "flask_atm:grant:a": pytest.approx(ends_at, abs=0.002),
        "flask_atm:grant:b": pytest.approx(ends_at - 50, abs=0.002),
        "flask_atm:all:": pytest.approx(ends_at, abs=0.002),
        "flask_atm:index:i": pytest.approx(ends_at, abs=0.002),
        "flask_atm:index:o": pytest.approx(ends_at - 50, abs=0.002),
    }


def test_nothing_is_left_after_the_end(store: RedisStore, client: Any) -> None:
    store.create("a", b"", ends_at=soon(0.15), index=["i"])
    assert store.read("a") is not None
    assert client.exists("flask_atm:grant:a", "flask_atm:all:", "flask_atm:index:i") == 3
    give_up = time.monotonic() + 5
    while client.exists("flask_atm:grant:a", "flask_atm:all:", "flask_atm:index:i"):
        assert time.monotonic() < give_up
    assert (store.read("a"), store.find("i"), store.scan("", 9)) == (None, [], [])
    # What had ended before it came leaves nothing either.
    assert store.create("b", b"", ends_at=soon(-5), index=["i"])
    assert (store.read("b"), client.dbsize()) == (None, 0)


def test_delete_leaves_nothing_but_for_some_seconds(store: RedisStore, client: Any) -> None:
    store.create("a", b"sealed", ends_at=soon(), index=["i", "j"])
    assert store.delete("a")
    assert client.keys() == [b"flask_atm:grant:a"]  # for a repetition of this very call
    assert 0 < client.pttl("flask_atm:grant:a") <= 10_000
    assert b"sealed" not in client.get("flask_atm:grant:a")
    assert store.create("a", b"2", ends_at=soon())
    assert begin(store) == "held"


def test_ended_members_are_trimmed_while_others_come(server: RedisServer, client: Any) -> None:
    clock = FakeClock(START)
    store = clocked(server.url, clock)
    for number in range(300):
        store.create(hashed(number), b"", ends_at=START + 10, index=["one"])
    clock.advance(20)
    for number in range(300, 450):
        store.create(hashed(number), b"", ends_at=END, index=["one"])
    assert 150 <= client.zcard("flask_atm:index:one") < 180
    assert 150 <= client.zcard("flask_atm:all:") < 180
    # And by whoever goes through.
    assert len(store.find("one", 1000)) == len(store.scan("", 1000)) == 150
    assert client.zcard("flask_atm:index:one") == client.zcard("flask_atm:all:") == 150
    store.close()


def test_an_index_without_its_record_is_no_find(store: RedisStore, client: Any) -> None:
    # A process was killed after it wrote the index and before the record, or the other way round.
    store.create("b", b"", ends_at=soon(), index=["i"])
    store.create("c", b"", ends_at=soon(), index=["i"])
    for name in (b"flask_atm:index:i", b"flask_atm:all:"):
        for key in ("a", "d"):
            store._link.run("step", name, "enter", b"%b\0%016d" % (key.encode(), soon() * 1000))
    client.delete("flask_atm:grant:c")
    assert store.find("i") == ["b"]
    assert store.find("i", 1) == ["b"]
    assert [key for key, _ in store.scan("", 10)] == ["b"]
    assert [key for key, _ in store.scan("", 1)] == ["b"]


def test_scan_and_find_go_through_many_in_pages(store: RedisStore) -> None:
    keys = sorted(hashed(number) for number in range(250))
    for key in keys:
        store.create(key, key.encode(), ends_at=soon(), index=["i"])
    assert [key for key, _ in store.scan("", 1000)] == keys
    assert [key for key, _ in store.scan(keys[99], 120)] == keys[100:220]
    assert store.find("i", 1000) == keys
    assert store.find("i", 120) == keys[:120]


def test_a_value_that_is_cut_is_no_record_and_is_kept(store: RedisStore, client: Any) -> None:
    store.create("a", b"sealed", ends_at=soon())
    for value in (client.get("flask_atm:grant:a")[:20], b"", b"2 x", b"1 " * 20, b"\xff"):
        client.set("flask_atm:grant:a", value)
        assert store.read("a") is None
        assert begin(store) == "gone"
        assert store.scan("", 10) == []
        assert client.get("flask_atm:grant:a") == value


def test_two_prefixes_share_a_server(server: RedisServer) -> None:
    one, two = RedisStore(server.url, prefix="one"), RedisStore(server.url, prefix="t-w.o:x")
    one.create("a", b"1", ends_at=soon())
    two.create("a", b"2", ends_at=soon())
    for store, sealed in ((one, b"1"), (two, b"2")):
        found = store.read("a")
        assert found is not None
        assert found.sealed == sealed
        assert len(store.scan("", 10)) == 1
        store.close()


def test_a3_the_clock_is_the_servers(server: RedisServer, client: Any) -> None:
    # ATM(clock=…) reaches a store through BY_SCHEME; this one has no use for it.
    store = BY_SCHEME["redis"](server.url, "flask_atm", FakeClock(5.0), EngineParameters())
    store.create("a", b"", ends_at=soon())
    stored = store.read("a")
    assert stored is not None
    seconds, microseconds = client.time()
    assert stored.now == pytest.approx(seconds + microseconds / 1e6, abs=1)
    assert begin(store) == "held"
    assert store.begin("a", owner="y", expected_version=1, lease=9, intent="h").wait > 8


# -- lost answers: each step is repeated once, and what it did is not done twice


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[FaultProxy]:
    with FaultProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def behind(proxy: FaultProxy) -> Iterator[RedisStore]:
    """A store behind the proxy, with a grant in it."""
    store = RedisStore(f"redis://127.0.0.1:{proxy.port}")
    store.create("a", b"1", ends_at=soon(), index=["i"])
    yield store
    store.close()


def losing(proxy: FaultProxy, step: Callable[[], Any]) -> Any:
    lost = proxy.spoilt
    proxy.lose()
    found = step()
    assert proxy.spoilt == lost + 1
    return found


def test_a8_the_lost_answer_to_a_commit(behind: RedisStore, proxy: FaultProxy) -> None:
    def commit() -> str:
        return behind.commit("a", b"2", expected_version=1, commit_id="c")

    assert losing(proxy, commit) == "ok"
    stored = behind.read("a")
    assert stored is not None
    assert (stored.control.version, stored.sealed) == (2, b"2")


def test_a9_the_lost_answer_to_a_begin(behind: RedisStore, proxy: FaultProxy) -> None:
    begun = losing(
        proxy, lambda: behind.begin("a", owner="x", expected_version=1, lease=9, intent="h")
    )
    assert (begun.status, begun.version, begun.doubt) == ("held", 1, False)


def test_the_lost_answer_to_an_update(behind: RedisStore, proxy: FaultProxy) -> None:
    assert losing(proxy, lambda: behind.update("a", b"2", expected_version=1)) == "ok"
    stored = behind.read("a")
    assert stored is not None
    assert (stored.control.version, stored.sealed) == (2, b"2")
    assert behind.update("a", b"3", expected_version=1) == "moved"


def test_the_lost_answer_to_an_abort(behind: RedisStore, proxy: FaultProxy) -> None:
    begin(behind)
    losing(proxy, lambda: behind.abort("a", owner="x", clear_intent=True, failures=1))
    stored = behind.read("a")
    assert stored is not None
    assert (stored.control.version, stored.control.failures) == (2, 1)


def test_the_lost_answer_to_a_create(behind: RedisStore, proxy: FaultProxy) -> None:
    assert losing(proxy, lambda: behind.create("b", b"2", ends_at=soon()))
    assert not behind.create("b", b"2", ends_at=soon())

    # Also where it is the record's, and not that of an index before it.
    behind._link.run_all([("DEL", b"flask_atm:all:")])
    original = behind._do

    def do(key: str, step: str, *arguments: Any) -> Any:
        proxy.lose()
        return original(key, step, *arguments)

    behind._do = do  # type: ignore[method-assign]
    assert behind.create("c", b"2", ends_at=soon())
    assert proxy.spoilt == 2


@pytest.mark.parametrize("keep", [None, b"outbox"])
def test_the_lost_answer_to_a_delete(
    behind: RedisStore, proxy: FaultProxy, keep: bytes | None
) -> None:
    assert losing(proxy, lambda: behind.delete("a", keep=keep))
    assert behind.find("i") == []
    assert not behind.delete("a", keep=keep)
    stored = behind.read("a")
    assert (stored and stored.sealed) == keep


def test_the_lost_answer_to_a_delete_of_a_tombstone(behind: RedisStore, proxy: FaultProxy) -> None:
    behind.delete("a", keep=b"1")
    assert not losing(proxy, lambda: behind.delete("a", keep=b"2"))
    assert not losing(proxy, lambda: behind.delete("a"))
    assert behind.read("a") is None


def test_two_lost_answers_are_a_store_error(behind: RedisStore, proxy: FaultProxy) -> None:
    proxy.lose(2)
    with pytest.raises(StoreError, match="reachable from this host"):
        behind.read("a")
    assert behind.read("a") is not None


# -- C7: time-outs


@contextmanager
def took(least: float, most: float) -> Iterator[None]:
    threads = own_threads()
    start = time.monotonic()
    yield
    assert least <= time.monotonic() - start <= most
    assert own_threads() <= threads


def own_threads() -> set[threading.Thread]:
    return {one for one in threading.enumerate() if not one.name.startswith("FaultProxy")}


def test_c7_a_server_that_does_not_even_refuse(server: RedisServer) -> None:
    with silent_url() as url:
        store = RedisStore(url.replace("http", "redis"))
        with took(0.9, 1.6), pytest.raises(StoreError, match="Timeout connecting"):
            store.read("a")


def test_c7_a_server_that_hangs(server: RedisServer) -> None:
    with RedisServer() as hanging:
        store = RedisStore(hanging.url)
        store.create("a", b"", ends_at=soon())
        hanging.pause()
        with took(1.9, 3.2), pytest.raises(StoreError, match="reachable"):
            begin(store)
        hanging.resume()
        # Whatever it has done meanwhile: the owner is not locked out.
        assert begin(store) == "held"
        store.close()


def test_c7_a_half_open_connection_is_given_up(behind: RedisStore, proxy: FaultProxy) -> None:
    proxy.always(HalfOpen())
    with took(1.9, 3.2), pytest.raises(StoreError):
        behind.read("a")
    proxy.always(None)
    assert behind.read("a") is not None


def test_c7_the_connections_beside_a_dead_one_are_not_tried(
    behind: RedisStore, proxy: FaultProxy
) -> None:
    barrier = threading.Barrier(8)

    def read() -> None:
        barrier.wait(10)
        behind.read("a")

    crowd = [threading.Thread(target=read) for _ in range(8)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    proxy.always(HalfOpen())
    threading.Timer(0.5, lambda: proxy.always(None)).start()
    time.sleep(0.01)
    with took(0.9, 1.6):
        assert behind.read("a") is not None


def test_c7_an_answer_that_is_late(behind: RedisStore, proxy: FaultProxy) -> None:
    proxy.always(Delay(0.3))
    with took(0.3, 1.5):
        assert begin(behind) == "held"


def test_a_server_that_was_restarted_is_found_again() -> None:
    with RedisServer("--appendfsync", "always", appendonly=True) as server:
        store = RedisStore(server.url)
        store.create("a", b"1", ends_at=soon(), index=["i"])
        server.kill()
        with took(0, 0.5), pytest.raises(StoreError, match=r"refused.*reachable"):
            store.read("a")
        server.start()
        assert begin(store) == "held"
        assert store.find("i") == ["a"]
        server.kill()
        server.start()
        # At the first attempt, over a connection that was closed while it was idle.
        assert store.commit("a", b"2", expected_version=1, commit_id="c") == "ok"
        store.close()


# -- C5: a server that refuses


def refused(store: AtomicGrantStore, cure: str) -> None:
    with pytest.raises(StoreError, match=cure) as caught:
        begin(store)
    assert "flask_atm:grant" not in str(caught.value)


def test_c5_oom(store: RedisStore, client: Any) -> None:
    for key in "abcde":
        store.create(key, b"1", ends_at=soon(), index=["i"])
    for key in "bc":
        assert begin(store, key) == "held"
    client.config_set("maxmemory", 1)
    try:
        refused(store, "OutOfMemory.*raise maxmemory")
        for step in (
            lambda: store.create("f", b"", ends_at=soon(), index=["i"]),
            lambda: store.update("a", b"2", expected_version=1),
        ):
            with pytest.raises(StoreError, match="raise maxmemory"):
                step()
        # Who is signed in stays so, what was begun ends as it should, and who wants to can leave.
        assert store.commit("b", b"2", expected_version=1, commit_id="c") == "ok"
        store.abort("c", owner="x", clear_intent=True)
        assert store.delete("d")
        assert store.delete("e", keep=b"outbox", index=["o"])
        assert store.find("o") == ["e"]
        assert store.find("i") == ["a", "b", "c"]
        found = {key: stored.sealed for key, stored in store.scan("", 10)}
        assert found == {"a": b"1", "b": b"2", "c": b"1", "e": b"outbox"}
    finally:
        client.config_set("maxmemory", 0)
    assert begin(store) == begin(store, "c", 2) == "held"


def test_c5_readonly(store: RedisStore, client: Any) -> None:
    store.create("a", b"1", ends_at=soon(), index=["i"])
    client.replicaof("127.0.0.1", 1)
    try:
        refused(store, "ReadOnly.*replica: name the primary")
        assert store.read("a") is not None
        assert store.find("i") == ["a"]
    finally:
        client.replicaof("NO", "ONE")


def test_c5_misconf() -> None:
    with RedisServer() as server, redis.Redis.from_url(server.url) as client:
        store = RedisStore(server.url)
        store.create("a", b"1", ends_at=soon())
        # It may not save over a folder.
        (server.folder / "dump.rdb").mkdir()
        client.config_set("save", "3600 1")
        client.bgsave()
        while client.info("persistence")["rdb_last_bgsave_status"] == "ok":
            time.sleep(0.01)
        refused(store, "MISCONF.*cannot save")
        assert store.read("a") is not None
        store.close()


def test_c5_loading() -> None:
    with RedisServer(appendonly=True) as server:
        store = RedisStore(server.url)
        store.create("a", b"1", ends_at=soon())
        with redis.Redis.from_url(server.url) as client:
            for _ in range(20):
                client.eval("for i = 1, 1000 do redis.call('SET', i, '') end", 0)
        server.stop()
        server.start("--key-load-delay", "50")  # microseconds; it looks up every 1024 keys
        refused(store, "loading.*ends by itself")
        store.close()


def test_c5_noscript(store: RedisStore, client: Any) -> None:
    store.create("a", b"1", ends_at=soon())
    for _ in range(2):
        client.script_flush()
        assert store.read("a") is not None
        client.script_flush()
        assert begin(store) == "held"


def test_c5_moved(cluster_url: str) -> None:
    store = RedisStore(cluster_url)
    problems = set()
    for number in range(20):
        try:
            store.read(hashed(number))
        except StoreError as error:
            problems.add(str(error))
    assert problems
    assert all("give RedisStore a redis.RedisCluster" in problem for problem in problems)
    store.close()


def test_c5_a_cluster_that_is_not_complete() -> None:
    with RedisServer(cluster=True) as server:
        store = RedisStore(server.url)
        refused(store, "look at CLUSTER INFO")
        store.close()


def test_c5_user_and_password() -> None:
    with RedisServer("--requirepass", PASSWORD) as server:
        right = f"redis://:{PASSWORD}@127.0.0.1:{server.port}/0"
        store = RedisStore(right)
        assert store.create("a", b"1", ends_at=soon())
        assert PASSWORD not in repr(store)
        store.close()
        for url in (server.url, right.replace(PASSWORD, f"{PASSWORD}-wrong")):
            refused(RedisStore(url), "user or password are wrong")
        with redis.Redis.from_url(right) as client:
            client.acl_setuser("app", enabled=True, passwords=["+pw"], commands=["+@read"])
        refused(RedisStore(f"redis://app:pw@127.0.0.1:{server.port}"), r"lacks a right.*~flask_atm")


def test_the_rights_that_the_error_names_are_enough() -> None:
    with RedisServer() as server, redis.Redis.from_url(server.url) as client:
        rights = "+@read +@write +@scripting +@connection +time +info ~flask_atm:*"
        client.execute_command("ACL", "SETUSER", "app", "on", ">pw", *rights.split(" "))
        store = RedisStore(f"redis://app:pw@127.0.0.1:{server.port}")
        store.create("a", b"1", ends_at=soon(), index=["i"])
        assert begin(store) == "held"
        assert store.find("i") == ["a"]
        assert store.delete("a", keep=b"", index=["o"])
        assert len(store.scan("", 9)) == 1
        store.close()


def test_j1_no_error_and_no_log_shows_the_password(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with RedisServer("--requirepass", "another") as server:
        store = RedisStore(f"redis://user:{PASSWORD}@127.0.0.1:{server.port}/0")
        with pytest.raises(StoreError) as caught:
            store.read("a")
    here = caught.value.__traceback__
    assert here is not None
    shown = "".join(
        traceback.TracebackException(
            type(caught.value), caught.value, here.tb_next, capture_locals=True
        ).format()
    )
    assert PASSWORD not in shown
    assert PASSWORD not in caplog.text
    assert caught.value.__context__ is None


def test_c5_a_key_of_somebody_else(store: RedisStore, client: Any) -> None:
    client.sadd("flask_atm:grant:a", "x")
    with pytest.raises(StoreError, match=r"begins with flask_atm: .*ATM_STORE_PREFIX"):
        begin(store)


def test_c5_a_server_without_scripts() -> None:
    with RedisServer("--rename-command", "EVALSHA", "") as server:
        refused(RedisStore(server.url), "Redis 6 or later")


def test_c5_too_many_connections(store: RedisStore, client: Any) -> None:
    before = client.config_get("maxclients")["maxclients"]
    client.config_set("maxclients", 1)
    try:
        refused(store, "too many connections")
    finally:
        client.config_set("maxclients", before)


def test_c6_a_server_that_evicts_is_warned_of_once(
    client: Any, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    client.config_set("maxmemory", "500mb")
    client.config_set("maxmemory-policy", "volatile-lru")
    try:
        store = RedisStore(server.url)
        for _ in range(3):
            store.read("a")
        store.close()
    finally:
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")
    (record,) = [one for one in caplog.records if one.name == "flask_atm.store"]
    assert "maxmemory-policy volatile-lru" in record.getMessage()
    caplog.clear()
    RedisStore(server.url).read("a")
    assert not [one for one in caplog.records if one.name == "flask_atm.store"]


# -- TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


def test_b13_rediss_with_a_certificate_that_is_trusted(
    server: RedisServer, authority: Authority
) -> None:
    with tls_in_front(server.port, authority.server()) as port:
        store = RedisStore(f"rediss://127.0.0.1:{port}?ssl_ca_certs={authority.bundle}")
        assert store.create("a", b"", ends_at=soon())
        assert begin(store) == "held"
        store.close()


@pytest.mark.parametrize("options", [{"host": "other.example"}, {"self_signed": True}, None])
def test_b13_rediss_with_a_bad_certificate_is_refused(
    server: RedisServer, authority: Authority, options: dict[str, Any] | None
) -> None:
    trusted = "" if options is None else f"?ssl_ca_certs={authority.bundle}"
    with tls_in_front(server.port, authority.server(**options or {})) as port:
        refused(RedisStore(f"rediss://127.0.0.1:{port}{trusted}"), r"\?ssl_ca_certs=/path")


# -- clients of the application


def test_its_client_is_used_as_it_is(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url, client_name="mine", max_connections=1) as client:
        store = RedisStore(client)
        store.create("a", bytes(range(256)), ends_at=soon())
        assert [one["name"] for one in client.client_list()] == ["mine"]
        assert repr(store) == "<RedisStore 'the client of the application'>"
        store.close()
        assert client.ping()


def test_sealed_bytes_survive_a_client_that_decodes(server: RedisServer) -> None:
    sealed = bytes(range(256)) * 8
    every: list[dict[str, Any]] = [{}, {"encoding": "latin-1"}, {"protocol": 3}]
    for number, options in enumerate(every):
        with redis.Redis.from_url(server.url, decode_responses=True, **options) as client:
            store = RedisStore(client, prefix=f"p{number}")
            key = str(options)
            store.create(key, sealed, ends_at=soon(), index=["é"])
            assert store.update(key, sealed[::-1], expected_version=1) == "ok"
            stored = store.read(key)
            assert stored is not None
            assert stored.sealed == sealed[::-1]
            assert store.find("é") == [key]
            assert client.type(f"p{number}:all:") == "zset"  # it still decodes for others


def test_a_socket_of_the_host(tmp_path: Path) -> None:
    with RedisServer("--unixsocket", str(tmp_path / "socket")) as server:
        store = RedisStore(f"unix://{tmp_path}/socket?db=2")
        assert store.create("a", b"", ends_at=soon())
        assert begin(store) == "held"
        assert repr(store) == f"<RedisStore 'unix://{tmp_path}/socket'>"
        server.kill()
        refused(store, "reachable")


@pytest.mark.parametrize("wrong", [object(), None, 5])
def test_what_is_no_client_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"takes a URL, a redis\.Redis or a redis\.RedisCluster"):
        RedisStore(wrong)


def test_an_asynchronous_client_is_refused() -> None:
    from redis.asyncio import Redis

    with pytest.raises(TypeError, match=r"not one of redis\.asyncio"):
        RedisStore(Redis())  # type: ignore[arg-type]


def test_without_redis_py_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "redis", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'flask-atm\[redis\]'"):
        RedisStore("redis://localhost")


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{PASSWORD}@host:port",
        f"redis://:{PASSWORD}@host?socket_timeout=soon",
        f"redis://:{PASSWORD}@host?no_such_option=1",
        f"redis://:{PASSWORD}/x@host",
        f"tcp://:{PASSWORD}@host",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_at_start(url: str) -> None:
    with pytest.raises(ConfigurationError, match="redis://user:password@host") as caught:
        RedisStore(url)
    assert PASSWORD not in str(caught.value)
    assert caught.value.__context__ is None


def test_options_in_the_url_win(server: RedisServer) -> None:
    with RedisServer() as hanging:
        store = RedisStore(f"{hanging.url}?socket_timeout=0.1")
        store.read("a")
        hanging.pause()
        with took(0.1, 0.9), pytest.raises(StoreError):
            store.read("a")
        hanging.resume()
        store.close()


# -- forks, threads, connections

forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def _count(store: RedisStore, times: int) -> None:
    for _ in range(times):
        while True:
            stored = store.read("a")
            assert stored is not None
            new = b"%d" % (int(stored.sealed) + 1)
            if store.update("a", new, expected_version=stored.control.version) == "ok":
                break


def _in_children(number: int, work: Callable[[], object]) -> None:
    children = []
    for _ in range(number):
        child = os.fork()
        if child == 0:
            status = 1
            with suppress(BaseException):
                work()
                status = 0
            os._exit(status)
        children.append(child)
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@forks
@pytest.mark.parametrize("own", [True, False])
def test_a15_children_share_no_connection(server: RedisServer, own: bool) -> None:
    with redis.Redis.from_url(server.url) as client:
        store = RedisStore(server.url if own else client)
        store.create("a", b"0", ends_at=soon())
        _count(store, 5)
        _in_children(4, lambda: _count(store, 20))
        _count(store, 5)
        stored = store.read("a")
        assert stored is not None
        assert stored.sealed == b"90"
        store.close()


@forks
def test_a15_a_fork_while_threads_are_at_work(server: RedisServer) -> None:
    store = RedisStore(server.url)
    store.create("a", b"0", ends_at=soon())
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            store.read("a")

    crowd = [threading.Thread(target=read) for _ in range(4)]
    for one in crowd:
        one.start()
    try:
        for _ in range(5):
            _in_children(2, lambda: store.read("a"))
    finally:
        stop.set()
        for one in crowd:
            one.join()
    assert store.read("a") is not None
    store.close()


class Stop(BaseException):
    """As a signal handler, or gevent, raises in the middle of anything."""


def test_an_answer_that_nobody_took_is_not_the_next_ones(
    behind: RedisStore, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind.create("b", b"2", ends_at=soon())
    proxy.always(Delay(0.1))

    def stop(*arguments: Any, **options: Any) -> None:
        raise Stop

    # Asked, and interrupted before the answer was read, which is still on its way.
    with monkeypatch.context() as patch:
        patch.setattr(redis.Redis, "parse_response", stop)
        with pytest.raises(Stop):
            behind.read("a")
    stored = behind.read("b")
    assert stored is not None
    assert stored.sealed == b"2"


def test_close_leaves_no_connection_and_the_store_goes_on(client: Any, store: RedisStore) -> None:
    store.read("a")
    assert len(client.client_list()) == 2
    store.close()
    store.close()
    assert len(client.client_list()) == 1
    assert store.read("a") is None
    store.close()


def test_a_store_that_is_forgotten_closes_its_connections(server: RedisServer, client: Any) -> None:
    RedisStore(server.url).read("a")
    gc.collect()
    give_up = time.monotonic() + 5
    while len(client.client_list()) > 1:
        assert time.monotonic() < give_up
