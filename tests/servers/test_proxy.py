"""The proxy does what it says."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from flask_atm.errors import ServerUnavailable
from flask_atm.testing.clock import FakeClock
from tests.grants.tools import FAST, make_world, metadata
from tests.servers import FaultyServer, Reply, RotatingTokenServer
from tests.servers.oidc import new_session
from tests.servers.proxy import Delay, Drip, Drop, FaultProxy, HalfOpen, Reset

BODY = {"hello": "world"}


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer(default=Reply(200, BODY)) as running:
        yield running


@pytest.fixture
def proxy(server: FaultyServer) -> Iterator[FaultProxy]:
    with FaultProxy(int(server.url.rpartition(":")[2])) as running:
        yield running


@pytest.fixture
def client() -> Iterator[requests.Session]:
    with new_session() as session:
        yield session


def test_what_is_not_spoilt_goes_through(
    server: FaultyServer, proxy: FaultProxy, client: requests.Session
) -> None:
    for _ in range(3):
        assert client.get(proxy.url, timeout=5).json() == BODY
    big = "x" * 3_000_000
    server.always(Reply(200, big))
    assert client.post(proxy.url, data=big.encode(), timeout=10).text == big
    assert (proxy.connections, proxy.answers, proxy.spoilt) == (1, 4, 0)


@pytest.mark.parametrize("fault", [Drop(), Reset(), Reset(after=20)], ids=repr)
def test_the_nth_answer_is_lost_and_the_server_has_done_it(
    server: FaultyServer, proxy: FaultProxy, client: requests.Session, fault: Drop | Reset
) -> None:
    proxy.spoil(fault, at=2)
    assert client.get(proxy.url, timeout=5).json() == BODY
    with pytest.raises(requests.ConnectionError):
        client.get(proxy.url, timeout=5)
    assert client.get(proxy.url, timeout=5).json() == BODY
    assert len(server.requests) == 3
    assert (proxy.spoilt, proxy.connections) == (1, 2)


def test_a_dropped_connection_ends_in_order_and_a_reset_one_does_not(proxy: FaultProxy) -> None:
    proxy.spoil(Drop(), at=1)
    proxy.spoil(Reset(), at=2)
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as first:
        first.sendall(request)
        assert first.recv(1) == b""
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as second:
        second.sendall(request)
        with pytest.raises(ConnectionResetError):
            second.recv(1)


@pytest.mark.timed
def test_answers_are_late(proxy: FaultProxy, client: requests.Session) -> None:
    proxy.always(Delay(0.2))
    started = time.monotonic()
    assert client.get(proxy.url, timeout=5).json() == BODY
    assert 0.2 <= time.monotonic() - started < 2.0
    proxy.always(None)
    started = time.monotonic()
    assert client.get(proxy.url, timeout=5).json() == BODY
    assert time.monotonic() - started < 0.2


def test_answers_drip(proxy: FaultProxy, client: requests.Session) -> None:
    proxy.spoil(Drip(0.002))
    started = time.monotonic()
    answer = client.get(proxy.url, timeout=5)
    assert answer.json() == BODY
    assert time.monotonic() - started > 0.002 * len(answer.content)


def test_a_half_open_connection_says_nothing_and_does_not_end(
    server: FaultyServer, proxy: FaultProxy, client: requests.Session
) -> None:
    proxy.spoil(HalfOpen())
    with pytest.raises(requests.ReadTimeout):
        client.get(proxy.url, timeout=0.2)
    assert len(server.requests) == 1
    assert client.get(proxy.url, timeout=5).json() == BODY


def test_connections_are_cut_and_refused(proxy: FaultProxy, client: requests.Session) -> None:
    proxy.always(HalfOpen())
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            client.get(proxy.url, timeout=10)
        except requests.ConnectionError as error:
            failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    proxy.wait_spoilt()
    proxy.refuse()
    assert proxy.open_connections == 1
    proxy.cut()
    with pytest.raises(requests.ConnectionError):
        client.get(proxy.url, timeout=5)
    proxy.refuse(False)
    proxy.always(None)
    assert client.get(proxy.url, timeout=5).json() == BODY
    thread.join(5)
    assert failed


@pytest.mark.parametrize("fault", [Drop(), Reset(), HalfOpen(), Drip(0.05)], ids=repr)
def test_b_an_answer_of_the_token_endpoint_that_is_lost_on_the_way_leaves_the_doubt(
    fault: Drop | Reset | HalfOpen | Drip, tmp_path: Path
) -> None:
    """The engine at the other end of it: in time, in doubt, and once."""
    clock = FakeClock()
    with RotatingTokenServer() as server, FaultProxy(int(server.url.rpartition(":")[2])) as proxy:
        world = make_world(server, clock=clock, ATM_TOKEN_ENDPOINT=f"{proxy.url}/token")
        document = metadata(server) | {"token_endpoint": f"{proxy.url}/token"}
        server.always(Reply(body=document), "/.well-known/openid-configuration")
        grant_id = world.sign_in(server.issue("alice"))
        clock.advance(1000)
        proxy.spoil(fault)
        started = time.monotonic()
        with pytest.raises(ServerUnavailable):
            world.get(grant_id)
        assert time.monotonic() - started < FAST.timeout + 1.0
        assert proxy.spoilt == 1
        assert len(server.token_requests) == 1
        assert world.stored(grant_id).control.doubt
