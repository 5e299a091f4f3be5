"""The fake API, by plain HTTP."""

import socket
from collections.abc import Iterator
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from flask_atm.testing import FakeAPI, FakeClock, FakeProvider


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def provider(clock: FakeClock) -> Iterator[FakeProvider]:
    with FakeProvider(clock=clock) as provider:
        provider.register("job", "secret")
        yield provider


@pytest.fixture
def api(provider: FakeProvider) -> Iterator[FakeAPI]:
    with FakeAPI(provider) as api:
        yield api


@pytest.fixture
def token(provider: FakeProvider) -> str:
    return get_token(provider, scope="read")


def get_token(provider: FakeProvider, **form: str) -> str:
    answer = requests.post(
        f"{provider.issuer}/token",
        data={"grant_type": "client_credentials", **form},
        auth=("job", "secret"),
        timeout=5,
    )
    return str(answer.json()["access_token"])


def call(api: FakeAPI, path: str, token: str | None, **options: Any) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    method = options.pop("method", "GET")
    return requests.request(method, api.base_url + path, headers=headers, timeout=5, **options)


def test_answer_says_whose_token_it_was(api: FakeAPI, provider: FakeProvider) -> None:
    token = get_token(provider, scope="read", resource="https://api.example/")
    assert call(api, "invoices/1?page=2", token).json() == {
        "sub": "job",
        "name": None,
        "client_id": "job",
        "scope": "read",
        "audience": ["https://api.example/"],
        "method": "GET",
        "path": "/invoices/1",
        "calls": 1,
    }
    assert call(api, "", token).json()["calls"] == 2
    first = api.calls[0]
    assert (first.method, first.path, first.status) == ("GET", "/invoices/1?page=2", 200)
    assert (first.sub, first.body) == ("job", b"")


def test_no_token_is_asked_for_one(api: FakeAPI) -> None:
    answer = call(api, "", None)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert api.calls[0].sub is None


def is_refused(answer: requests.Response) -> bool:
    challenge = answer.headers.get("WWW-Authenticate", "")
    return answer.status_code == 401 and challenge.startswith('Bearer error="invalid_token"')


def test_bad_tokens_are_refused(
    api: FakeAPI, provider: FakeProvider, clock: FakeClock, token: str
) -> None:
    revoked = get_token(provider)
    api.revoke(revoked)
    assert is_refused(call(api, "", revoked))
    assert is_refused(call(api, "", "unknown"))
    assert call(api, "", token).status_code == 200
    clock.advance(300)
    assert is_refused(call(api, "", token))


def test_audience_is_checked_if_there_is_one(provider: FakeProvider, token: str) -> None:
    with FakeAPI(provider, audience="https://api.example/") as api:
        assert is_refused(call(api, "", token))
        right = get_token(provider, resource="https://api.example/")
        assert call(api, "", right).status_code == 200


def test_refuses_on_demand(api: FakeAPI, token: str) -> None:
    api.refuse(times=2)
    assert is_refused(call(api, "", token))
    assert is_refused(call(api, "", token))
    assert call(api, "", token).status_code == 200


def test_fails_on_demand(api: FakeAPI, token: str) -> None:
    api.fail(500)
    assert call(api, "", token).status_code == 500
    api.fail(None)
    with pytest.raises(requests.ConnectionError):
        call(api, "", token)
    api.fail(418, times=None, body={"tea": True})
    assert call(api, "", token).json() == {"tea": True}
    api.recover()
    assert call(api, "", token).status_code == 200
    assert [seen.status for seen in api.calls] == [500, None, 418, 200]


def test_scope_that_is_missing(api: FakeAPI, token: str) -> None:
    answer = call(api, "insufficient_scope", token)
    assert answer.status_code == 403
    assert answer.headers["WWW-Authenticate"] == 'Bearer error="insufficient_scope", scope="admin"'
    assert call(api, "insufficient_scope?scope=read", token).status_code == 200


def test_slow_answers(api: FakeAPI, token: str) -> None:
    assert call(api, "slow?ms=20", token).elapsed.total_seconds() >= 0.02


def test_answers_held_back(api: FakeAPI, token: str) -> None:
    answers: list[int] = []
    caller = Thread(target=lambda: answers.append(call(api, "", token).status_code))
    with api.hold() as held:
        caller.start()
        held.wait()
        assert answers == []
    caller.join()
    assert answers == [200]
    api.hold()
    api.release()
    assert call(api, "", token).status_code == 200


def test_bodies_arrive_however_they_are_sent(api: FakeAPI, token: str) -> None:
    call(api, "", token, method="POST", data=b"whole")
    call(api, "", token, method="PUT", data=iter([b"in ", b"parts"]))
    assert [seen.body for seen in api.calls] == [b"whole", b"in parts"]
    assert "whole" not in repr(api.calls)


def test_what_is_no_http_is_refused(api: FakeAPI) -> None:
    address = ("127.0.0.1", urlsplit(api.base_url).port)
    with socket.create_connection(address, timeout=5) as connection:
        connection.sendall(b"this is no request line\r\n\r\n")
        with connection.makefile("rb") as answer:
            assert b"Error code: 400" in answer.read()
    assert api.calls == []


def test_trailers_of_a_body_in_parts(api: FakeAPI, token: str) -> None:
    head = f"POST / HTTP/1.1\r\nAuthorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n"
    with socket.create_connection(("127.0.0.1", urlsplit(api.base_url).port), timeout=5) as sent:
        sent.sendall(head.encode() + b"Host: x\r\n\r\n2;x=y\r\nab\r\n0\r\nTrailer: 1\r\n\r\n")
        with sent.makefile("rb") as answer:
            assert answer.readline() == b"HTTP/1.1 200 OK\r\n"
    assert api.calls[0].body == b"ab"


def test_head_has_no_body(api: FakeAPI, token: str) -> None:
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {token}"
        answer = session.head(api.base_url, timeout=5)
        assert (answer.status_code, answer.content) == (200, b"")
        assert session.get(api.base_url, timeout=5).json()["sub"] == "job"


def test_down_and_back(api: FakeAPI, token: str) -> None:
    base_url = api.base_url
    assert repr(api) == f"<FakeAPI {base_url[:-1]}>"
    api.stop()
    with pytest.raises(requests.ConnectionError):
        call(api, "", token)
    api.start()
    assert api.base_url == base_url
    assert call(api, "", token).status_code == 200


def test_port_is_known_and_kept_before_the_start(provider: FakeProvider) -> None:
    api = FakeAPI(provider)
    base_url = api.base_url
    with pytest.raises(requests.ConnectionError):
        call(api, "", None)
    with api:
        assert api.base_url == base_url
        with pytest.raises(OSError, match=r"in use|Only one usage"):
            FakeAPI(provider, port=urlsplit(base_url).port or 0).start()
