"""The back channel against real sockets: deadlines, cuts, sizes, TLS, proxies, forks."""

import ipaddress
import json
import logging
import os
import select
import socket
import ssl
import threading
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from flask_atm.errors import ConfigurationError
from flask_atm.oauth.back_channel import Answer, BackChannel, Failure, Result
from tests.servers.faulty import (
    CloseIdle,
    Cut,
    Drip,
    Exchange,
    FaultyServer,
    Flood,
    GzipBomb,
    Hang,
    Held,
    Raw,
    Reply,
    Request,
    redirect,
    refusing_url,
    respond,
    silent_url,
)

TOKEN = Reply(200, {"access_token": "a", "token_type": "Bearer"})
REDIRECTS = [301, 302, 303, 307, 308]
FORM = {"grant_type": "refresh_token", "refresh_token": "canary-of-the-form"}


@pytest.fixture
def channel() -> Iterator[BackChannel]:
    made = BackChannel()
    yield made
    made.close()


def post(channel: BackChannel, url: str, *, timeout: float = 5.0, **options: Any) -> Result:
    return channel.send(
        "POST", url, form=FORM, deadline=monotonic() + timeout, **({"fresh": True} | options)
    )


# -- what is sent, what comes back


def test_a_form_goes_out_and_the_answer_comes_back(channel: BackChannel) -> None:
    with FaultyServer(Reply(401, {"error": "x"}, [("DPoP-Nonce", "n"), ("X-A", "1")])) as server:
        answer = channel.send(
            "POST",
            f"{server.url}/token",
            form={"resource": ["https://a", "https://b"], "scope": "x y"},
            headers={"Accept": "application/json"},
            deadline=monotonic() + 5,
        )
    assert isinstance(answer, Answer)
    assert (answer.status, answer.json()) == (401, {"error": "x"})
    assert (answer.headers["dpop-nonce"], answer.headers["x-a"]) == ("n", "1")
    (request,) = server.requests
    assert request.form == {"resource": ["https://a", "https://b"], "scope": ["x y"]}
    assert request.header("Accept") == "application/json"
    assert request.header("Accept-Encoding") == "identity"
    assert request.header("Content-Type") == "application/x-www-form-urlencoded"


def test_a_repeated_header_is_joined(channel: BackChannel) -> None:
    with FaultyServer(Reply(200, {}, [("DPoP-Nonce", "a"), ("DPoP-Nonce", "b")])) as server:
        answer = post(channel, server.url)
    assert isinstance(answer, Answer)
    assert answer.headers["dpop-nonce"] == "a, b"


def test_a_get_has_no_body(channel: BackChannel) -> None:
    with FaultyServer(Reply(200, {"issuer": "x"})) as server:
        channel.send("GET", f"{server.url}/m?a=b", deadline=monotonic() + 5)
    assert (server.requests[0].method, server.requests[0].body) == ("GET", b"")
    assert server.requests[0].query == {"a": ["b"]}


def test_connections_are_kept_but_not_cookies(channel: BackChannel) -> None:
    with FaultyServer(default=Reply(200, {}, {"Set-Cookie": "user=alice"})) as server:
        for _ in range(3):
            post(channel, server.url, fresh=False)
    assert server.connections_opened == 1
    assert all(request.header("Cookie") is None for request in server.requests)


def test_fresh_requests_share_no_connection(channel: BackChannel) -> None:
    with FaultyServer(default=TOKEN) as server:
        for _ in range(3):
            post(channel, server.url)
        server.wait_closed()
    assert server.connections_opened == 3


def test_the_answer_shows_nothing_of_itself() -> None:
    answer = Answer(status=200, headers={"set-cookie": "canary"}, body=b"canary")
    assert "canary" not in repr(answer)


def test_the_log_has_host_path_and_outcome_only(
    channel: BackChannel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with FaultyServer(Reply(200, {"access_token": "canary-of-the-body"}), Cut()) as server:
        post(channel, f"{server.url}/token", headers={"Authorization": "canary-of-the-header"})
        post(channel, f"{server.url}/token")
    lines = [r.getMessage() for r in caplog.records if r.name == "flask_atm.back_channel"]
    assert [line.partition(",")[0] for line in lines] == [
        "POST 127.0.0.1/token: 200",
        "POST 127.0.0.1/token: reset",
    ]
    assert "canary" not in caplog.text


# -- strict JSON


def answer_of(body: bytes) -> Answer:
    return Answer(status=200, headers={}, body=body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'"text"',
        b"<html></html>",
        b'{"a": 1',
        b'{"a": 1} x',
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 2}}',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": "\xff"}',
        b'{"a": "\\ud800"}',
        '{"a": 1}'.encode("utf-16"),
        b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}",
        b'{"a": ' + b"[" * 200_000,
        b'{"a":' * 50_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        b'"' + b'\\"' * 100_000,
    ],
)
def test_b4_what_is_no_strict_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="no JSON object") as caught:
        answer_of(body).json()
    assert caught.value.__context__ is None  # it would carry the document


def test_json_objects_are_read() -> None:
    assert answer_of(b'{"a": {"b": [1, 2.5, null, "[[{\\"", "\xc3\xa9"]}}').json() == {
        "a": {"b": [1, 2.5, None, '[[{"', "é"]}
    }
    assert answer_of(b"\xef\xbb\xbf{}").json() == {}
    assert answer_of(b'{"a": "\\ud83d\\ude00"}').json() == {"a": "\U0001f600"}


@given(st.binary() | st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode))
def test_n1_any_body_is_an_object_or_a_value_error(body: bytes) -> None:
    with suppress(ValueError):
        assert isinstance(answer_of(body).json(), dict)


# -- B: what the server does wrong


@pytest.mark.parametrize(
    "behaviour",
    [
        Reply(200, []),
        Reply(200, "<html>"),
        Reply(200, b'{"access_token": "a", "access_token": "b"}'),
        Reply(200, b'{"expires_in": NaN}'),
        Reply(200, b'{"a":' * 10_000),
    ],
    ids=["list", "html", "duplicate", "nan", "deep"],
)
def test_b4_answers_that_are_no_token_responses(channel: BackChannel, behaviour: Reply) -> None:
    with FaultyServer(behaviour) as server:
        answer = post(channel, server.url)
    assert isinstance(answer, Answer)
    with pytest.raises(ValueError, match="no JSON object"):
        answer.json()


@contextmanager
def at_most(extra: int) -> Iterator[None]:
    """Measure what this process allocates, its faulty server included."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < extra


@pytest.mark.parametrize(
    "behaviour",
    [
        Flood(),
        Flood(chunked=True),
        GzipBomb(),
        Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n" + bytes(4_000_000)),
        Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 4_000_000),
    ],
    ids=["length", "chunked", "gzip", "negative chunk", "endless chunk size"],
)
@pytest.mark.parametrize("fresh", [True, False])
def test_b4_an_endless_body_takes_no_memory(
    channel: BackChannel, behaviour: Callable[[Exchange], None], fresh: bool
) -> None:
    with FaultyServer(TOKEN, behaviour) as server:
        post(channel, server.url)
        with at_most(2 * 1024 * 1024):
            result = post(channel, server.url, fresh=fresh, timeout=30)
    assert isinstance(result, Failure)
    assert result.written
    assert result.reason in ("too_large", "short")


def test_the_largest_body_is_taken(channel: BackChannel) -> None:
    with FaultyServer(Reply(200, b"x" * 1000), Reply(200, b"x" * 1001)) as server:
        whole = post(channel, server.url, max_bytes=1000)
        larger = post(channel, server.url, max_bytes=1000)
    assert isinstance(whole, Answer)
    assert larger == Failure(written=True, reason="too_large")


@pytest.mark.parametrize("packed", ["gzip", "deflate"])
def test_a_body_that_is_packed_against_our_wish_is_read(channel: BackChannel, packed: str) -> None:
    packer = zlib.compressobj(wbits=31 if packed == "gzip" else 15)
    body = packer.compress(b'{"a": 1}') + packer.flush()
    headers = {"Content-Encoding": packed}
    with FaultyServer(Reply(200, body, headers), Reply(200, body[:-6], headers)) as server:
        whole, cut = post(channel, server.url), post(channel, server.url)
    assert isinstance(whole, Answer)
    assert whole.json() == {"a": 1}
    assert cut == Failure(written=True, reason="short")


@pytest.mark.parametrize("status", REDIRECTS)
@pytest.mark.parametrize("fresh", [True, False])
def test_b5_redirects_are_not_followed(channel: BackChannel, status: int, fresh: bool) -> None:
    with FaultyServer() as other, FaultyServer(redirect(status, other.url)) as server:
        answer = post(channel, server.url, fresh=fresh)
    assert isinstance(answer, Answer)
    assert answer.status == status
    assert (other.connections_opened, len(server.requests)) == (0, 1)


def cut_after(channel: BackChannel, url: str, *, timeout: float, fresh: bool) -> float:
    """Give the seconds after which a request was cut: of three the best, the machine is shared."""
    found = []
    for _ in range(3):
        started = monotonic()
        result = post(channel, url, timeout=timeout, fresh=fresh)
        found.append(monotonic() - started)
        assert result == Failure(written=True, reason="timeout")
        if found[-1] <= 1.1 * timeout:
            break
    return min(found)


@pytest.mark.parametrize("where", ["headers", "body"])
@pytest.mark.parametrize("fresh", [True, False])
def test_b6_a_dripping_answer_is_cut_at_the_deadline(
    channel: BackChannel, where: Any, fresh: bool
) -> None:
    with FaultyServer(default=Drip(0.1, where)) as server:
        assert 0.9 <= cut_after(channel, server.url, timeout=1.0, fresh=fresh) <= 1.1
        server.wait_closed()


def test_b6_a_dripping_body_without_a_length_is_no_short_success(channel: BackChannel) -> None:
    reply = Reply(200, b"{}" + b" " * 100, {"Transfer-Encoding": "identity"})
    with FaultyServer(Drip(0.05, reply=reply)) as server:
        result = post(channel, server.url, timeout=1.5)
    assert result == Failure(written=True, reason="timeout")


def test_b6_a_server_that_says_nothing_is_cut_at_the_deadline(channel: BackChannel) -> None:
    with FaultyServer(Hang()) as server:
        started = monotonic()
        result = post(channel, server.url, timeout=0.5)
        assert 0.45 <= monotonic() - started <= 2
    assert result == Failure(written=True, reason="timeout")


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (Cut("before"), "reset"),
        (Cut("before", reset=True), "reset"),
        (Cut("headers"), "reset"),
        (Cut("body"), "short"),
        (Cut("body", reset=True), "short"),
        (Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"), "reset"),
        (Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"), "short"),
        (Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{}"), "short"),
        (Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n{}"), "short"),
        (Raw(b"SSH-2.0-OpenSSH_9.9\r\n"), "reset"),
    ],
)
@pytest.mark.parametrize("fresh", [True, False])
def test_b6_an_answer_that_is_cut_is_a_failure(
    channel: BackChannel, behaviour: Callable[[Exchange], None], reason: str, fresh: bool
) -> None:
    with FaultyServer(behaviour) as server:
        result = post(channel, server.url, fresh=fresh)
    assert isinstance(result, Failure)
    assert (result.written, result.reason) == (True, reason)


@pytest.mark.parametrize("body", [b"{}", b""])
def test_an_answer_that_is_whole_is_kept_though_it_is_late(body: bytes) -> None:
    """The deadline ends the wait; what has come may hold a rotated refresh token."""

    class Dawdling(requests.Session):
        def request(self, *args: Any, **kwargs: Any) -> requests.Response:
            response = super().request(*args, **kwargs)
            threading.Event().wait(0.3)
            return response

    with Dawdling() as session, FaultyServer(Reply(200, body)) as server:
        answer = post(BackChannel(http_session=lambda name: session), server.url, timeout=0.2)
    assert isinstance(answer, Answer)
    assert answer.body == body


def test_b7_a_closed_idle_connection_does_not_matter_to_fresh_requests(
    channel: BackChannel,
) -> None:
    with FaultyServer(default=CloseIdle()) as server:
        assert isinstance(post(channel, server.url, fresh=False), Answer)
        for _ in range(3):
            assert isinstance(post(channel, server.url, fresh=True), Answer)
        assert server.connections_opened == 4


@pytest.mark.parametrize("behaviour", [Cut(), Reply(503, {}, {"Retry-After": "0"})])
@pytest.mark.parametrize("fresh", [True, False])
def test_b8_nothing_is_repeated(
    channel: BackChannel, behaviour: Callable[[Exchange], None], fresh: bool
) -> None:
    with FaultyServer(default=behaviour) as server:
        post(channel, server.url, fresh=fresh)
    assert len(server.requests) == 1


# -- nothing was written


def test_refused_unknown_and_silent_hosts(channel: BackChannel) -> None:
    with refusing_url() as url:
        assert post(channel, url) == Failure(written=False, reason="refused")
    unknown = post(channel, "https://as.invalid/", timeout=2)
    assert unknown == Failure(written=False, reason="dns")
    with silent_url() as url:
        started = monotonic()
        assert post(channel, url, timeout=0.5) == Failure(written=False, reason="timeout")
        assert monotonic() - started < 2


def test_the_connect_time_out_ends_before_the_deadline() -> None:
    with silent_url() as url:
        started = monotonic()
        result = post(BackChannel(connect_timeout=0.3), url, timeout=30)
    assert result == Failure(written=False, reason="timeout")
    assert monotonic() - started < 2


def test_a_deadline_in_the_past_sends_nothing(channel: BackChannel) -> None:
    with FaultyServer(default=TOKEN) as server:
        assert post(channel, server.url, timeout=-1) == Failure(written=False, reason="timeout")
        assert not server.requests


@contextmanager
def listening() -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Give an address, and what gives all the bytes that its first connection brought."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)

        def received() -> bytes:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as stream:
                return stream.read()

        yield f"127.0.0.1:{listener.getsockname()[1]}", received


def test_a_window_that_is_over_sends_no_byte(channel: BackChannel) -> None:
    with listening() as (place, received), ThreadPoolExecutor() as pool:
        arrived = pool.submit(received)
        result = post(channel, f"http://{place}", may_write=lambda: False)
        assert result == Failure(written=False, reason="window")
        assert arrived.result() == b""


def test_the_window_is_asked_once_and_after_connecting(channel: BackChannel) -> None:
    asked = []
    with FaultyServer(default=TOKEN) as server:
        for fresh in (True, False, False):
            opened = server.connections_opened

            def may_write(opened: int = opened) -> bool:
                asked.append(opened)
                return True

            assert isinstance(post(channel, server.url, fresh=fresh, may_write=may_write), Answer)
    assert asked == [0, 1, 2]


def test_a_deadline_between_connect_and_write_sends_no_byte(channel: BackChannel) -> None:
    never = threading.Event()
    with listening() as (place, received), ThreadPoolExecutor() as pool:
        arrived = pool.submit(received)
        result = post(
            channel,
            f"http://{place}",
            timeout=0.2,
            may_write=lambda: not never.wait(0.4),
        )
        assert result == Failure(written=False, reason="timeout")
        assert arrived.result() == b""


def test_an_interruption_in_the_window_leaves_nothing_behind(channel: BackChannel) -> None:
    def interrupted() -> bool:
        raise SystemExit

    with FaultyServer(default=TOKEN) as server:
        with pytest.raises(SystemExit):
            post(channel, server.url, may_write=interrupted)
        server.wait_closed()
        assert not server.requests
        assert isinstance(post(channel, server.url), Answer)


# -- name resolution


def test_the_deadline_holds_with_a_resolver_that_hangs() -> None:
    hanging, threads = threading.Event(), []

    def resolve(host: str, *rest: Any) -> list[Any]:
        threads.append(host)
        hanging.wait(10)
        raise socket.gaierror

    channel = BackChannel(resolver=resolve, connect_timeout=0.3)
    started = monotonic()
    with ThreadPoolExecutor(8) as pool:
        results = pool.map(lambda _: post(channel, "https://as.test/token"), range(8))
        assert set(results) == {Failure(written=False, reason="dns")}
    assert monotonic() - started < 2
    assert threads == ["as.test"]  # one for all
    hanging.set()


def test_the_next_address_is_tried() -> None:
    with refusing_url() as refusing, silent_url() as silent, FaultyServer(TOKEN) as server:
        ports = [int(url.rpartition(":")[2]) for url in (refusing, silent, server.url)]

        def resolve(host: str, *rest: Any) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", p)) for p in ports]

        channel = BackChannel(resolver=resolve, allowed_http_hosts=["as.test"])
        started = monotonic()
        assert isinstance(post(channel, "http://as.test:1/"), Answer)
    assert monotonic() - started < 2  # the silent one had its share of the connect time-out


# -- where requests may go


@pytest.mark.parametrize(
    "url",
    [
        "http://as.example.com/token",
        "http://10.0.0.1/token",
        "http://localhost.example.com/",
        "http://127.0.0.1.example.com/",
        "http://[::2]/",
        "https://user:pass@as.example.com/",
        "http://localhost@evil.example/",
        "https://as.example.com\\@evil.example/",
        "https://as.example.com%2f@evil.example/",
        "http://localhost\\.evil.example/",
        "https://as.example.com\t.evil.example/",
        "https://as.example.com/a b",
        "https://as.example.com/\r\nX: y",
        "https://ás.example.com/",
        "https://as.example.com:99999/",
        "https://as.example.com:/",
        "https:///token",
        "https:as.example.com",
        "file:///etc/passwd",
        "ftp://as.example.com/",
        "data:application/json,{}",
        "javascript:alert(1)",
        "//as.example.com/",
        "/token",
        "",
    ],
)
def test_b13_urls_that_are_never_asked(url: str) -> None:
    channel = BackChannel()
    with pytest.raises(ConfigurationError):
        channel.check_url(url)
    with pytest.raises(ConfigurationError):
        post(channel, url)


def test_b13_plain_http_is_for_loopback_and_named_hosts() -> None:
    channel = BackChannel(allowed_http_hosts=["Keycloak"])
    for host in (
        "localhost",
        "127.0.0.1:80",
        "127.9.9.9",
        "[::1]:8080",
        "keycloak:8080",
        "KEYCLOAK",
    ):
        channel.check_url(f"http://{host}/token?a=b")
    with pytest.raises(ConfigurationError, match="allowed_http_hosts"):
        channel.check_url("http://other/token")


def test_the_allowed_hosts_can_be_narrowed() -> None:
    channel = BackChannel(allowed_endpoint_hosts=["as.example.com"])
    channel.check_url("https://AS.example.com:8443/token")
    with pytest.raises(ConfigurationError, match="allowed_endpoint_hosts"):
        channel.check_url("https://as.example.com.evil.example/token")


# -- TLS


class Authority:
    """A certificate authority, and servers with certificates of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test CA")])
        self.bundle = folder / "ca.pem"
        certificate = self._sign(self.name, self.key, ca=True)
        self.bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        ca: bool = False,
        host: str = "127.0.0.1",
        days: int = 1,
        issuer: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None = None,
    ) -> x509.Certificate:
        name, signer = issuer or (self.name, self.key)
        try:
            place: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            place = x509.DNSName(host)
        usage = dict.fromkeys(
            [
                "digital_signature",
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "key_cert_sign",
                "crl_sign",
                "encipher_only",
                "decipher_only",
            ],
            False,
        ) | ({"key_cert_sign": True, "crl_sign": True} if ca else {"digital_signature": True})
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder(name, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=10))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False
            )
        )
        if not ca:
            builder = builder.add_extension(x509.SubjectAlternativeName([place]), False)
        return builder.sign(signer, hashes.SHA256())

    def server(self, *, self_signed: bool = False, **options: Any) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
        issuer = (subject, key) if self_signed else None
        certificate = self._sign(subject, key, issuer=issuer, **options)
        path = self.folder / f"{certificate.serial_number}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def trusting(authority: Authority) -> Iterator[BackChannel]:
    made = BackChannel(ca_bundle=str(authority.bundle))
    yield made
    made.close()


@pytest.mark.parametrize("fresh", [True, False])
def test_b13_a_good_certificate_is_accepted(
    authority: Authority, trusting: BackChannel, fresh: bool
) -> None:
    with FaultyServer(default=TOKEN, tls=authority.server()) as server:
        for _ in range(2):
            assert isinstance(post(trusting, f"{server.url}/token", fresh=fresh), Answer)
        assert server.connections_opened == (2 if fresh else 1)


@pytest.mark.parametrize(
    "options",
    [{"days": -1}, {"host": "as.example.com"}, {"self_signed": True}],
    ids=["expired", "wrong host", "self-signed"],
)
@pytest.mark.parametrize("fresh", [True, False])
def test_b13_a_bad_certificate_is_refused(
    authority: Authority, trusting: BackChannel, options: dict[str, Any], fresh: bool
) -> None:
    with FaultyServer(default=TOKEN, tls=authority.server(**options)) as server:
        for _ in range(2):
            result = post(trusting, server.url, fresh=fresh)
            assert result == Failure(written=False, reason="tls")
        assert not server.requests


def test_b13_an_unknown_authority_is_refused(authority: Authority, channel: BackChannel) -> None:
    with FaultyServer(default=TOKEN, tls=authority.server()) as server:
        assert post(channel, server.url) == Failure(written=False, reason="tls")


def test_a_server_that_speaks_no_tls_got_nothing(channel: BackChannel) -> None:
    with FaultyServer(default=TOKEN) as server:
        result = post(channel, server.url.replace("http:", "https:"))
        assert isinstance(result, Failure)
        assert not result.written
        # As the kernel ends what was not read, or nobody does.
        assert result.reason in ("tls", "reset", "timeout")
        assert not server.requests


def test_a_handshake_that_hangs_is_cut_at_the_deadline(channel: BackChannel) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = monotonic()
        result = post(channel, f"https://127.0.0.1:{silent.getsockname()[1]}", timeout=0.5)
    assert result == Failure(written=False, reason="timeout")
    assert monotonic() - started < 2


def test_a_handshake_that_drips_is_cut_at_the_deadline(channel: BackChannel) -> None:
    """Every byte restarts the time-out of a socket; only the watchdog ends this."""
    stop = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        record = b"\x16\x03\x03\x40\x00" + bytes(0x4000)
        with connection:
            try:
                while record and not stop.wait(0.05):
                    connection.send(record[:1])
                    record = record[1:]
            except OSError:
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as pool:
        pool.submit(drip, listener)
        started = monotonic()
        result = post(channel, f"https://127.0.0.1:{listener.getsockname()[1]}", timeout=0.5)
        elapsed = monotonic() - started
        stop.set()
    assert result == Failure(written=False, reason="timeout")
    assert elapsed < 2


@pytest.mark.parametrize("where", ["headers", "body"])
@pytest.mark.parametrize("fresh", [True, False])
def test_b6_a_dripping_answer_over_tls_is_cut_at_the_deadline(
    authority: Authority, trusting: BackChannel, where: Any, fresh: bool
) -> None:
    with FaultyServer(TOKEN, default=Drip(0.1, where), tls=authority.server()) as server:
        post(trusting, server.url, fresh=fresh)
        assert 0.9 <= cut_after(trusting, server.url, timeout=1.0, fresh=fresh) <= 1.1


def test_a_window_that_is_over_sends_no_request_over_tls(
    authority: Authority, trusting: BackChannel
) -> None:
    with FaultyServer(default=TOKEN, tls=authority.server()) as server:
        result = post(trusting, server.url, may_write=lambda: False)
        assert result == Failure(written=False, reason="window")
        server.wait_closed()
        assert not server.requests


@pytest.mark.parametrize("content", [None, b"no certificate"])
def test_a_wrong_ca_bundle_is_named(tmp_path: Path, content: bytes | None) -> None:
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"bundle\.pem.*ca_bundle"):
        post(BackChannel(ca_bundle=str(bundle)), "https://127.0.0.1:1/")


# -- the environment


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


@pytest.mark.parametrize("session", [None, lambda name: requests.Session()])
def test_b14_netrc_is_never_used(
    environment: pytest.MonkeyPatch, tmp_path: Path, session: Any
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login eve password canary\n")
    environment.setenv("NETRC", str(netrc))
    channel = BackChannel(http_session=session)
    with FaultyServer(default=TOKEN) as server:
        post(channel, server.url)
        post(channel, server.url, headers={"Authorization": "Basic ours"})
    assert [r.header("Authorization") for r in server.requests] == [None, "Basic ours"]


def test_b14_proxies_are_read_once_per_origin(environment: pytest.MonkeyPatch) -> None:
    with FaultyServer(default=TOKEN) as proxy, refusing_url() as nowhere:
        environment.setenv("http_proxy", proxy.url)
        channel = BackChannel(allowed_http_hosts=["as.test", "other.test"], connect_timeout=0.5)
        assert isinstance(post(channel, "http://as.test/token"), Answer)
        environment.setenv("http_proxy", nowhere)
        assert isinstance(post(channel, "http://as.test/token", fresh=False), Answer)
        assert post(channel, "http://other.test/") == Failure(written=False, reason="refused")
    assert {request.target for request in proxy.requests} == {"http://as.test/token"}


def test_b14_no_proxy_holds_and_loopback_has_none(environment: pytest.MonkeyPatch) -> None:
    with FaultyServer(default=TOKEN) as proxy, FaultyServer(default=TOKEN) as server:
        environment.setenv("http_proxy", proxy.url)
        environment.setenv("no_proxy", "as.test")
        port = int(server.url.rpartition(":")[2])
        channel = BackChannel(
            allowed_http_hosts=["as.test"],
            resolver=lambda host, *rest: socket.getaddrinfo("127.0.0.1", *rest),
        )
        assert isinstance(post(channel, f"http://as.test:{port}/"), Answer)
        assert isinstance(post(channel, server.url), Answer)
        assert (len(proxy.requests), len(server.requests)) == (0, 2)


def test_proxies_of_the_settings_win(environment: pytest.MonkeyPatch) -> None:
    with FaultyServer(default=TOKEN) as proxy, refusing_url() as nowhere:
        environment.setenv("http_proxy", nowhere)
        environment.setenv("no_proxy", "as.test")
        channel = BackChannel(allowed_http_hosts=["as.test"], proxies={"http": proxy.url})
        assert isinstance(post(channel, "http://as.test/"), Answer)


def test_a_proxy_of_another_kind_is_refused() -> None:
    channel = BackChannel(proxies={"https": "socks5h://127.0.0.1:1"})
    with pytest.raises(ConfigurationError, match="proxies"):
        post(channel, "https://as.test/")


def tunnel(exchange: Exchange) -> None:
    """Do what a proxy does with CONNECT, to the same port of this machine."""
    port = int(exchange.request.target.rpartition(":")[2])
    exchange.keep_alive = False
    with socket.create_connection(("127.0.0.1", port)) as server:
        exchange.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        ways = {exchange.connection: server, server: exchange.connection}
        while True:
            for one in select.select(list(ways), [], [], 5)[0]:
                data = one.recv(65536)
                if not data:
                    return
                ways[one].sendall(data)


@pytest.mark.parametrize("fresh", [True, False])
def test_a_tunnel_through_a_proxy_is_verified_and_the_flag_holds(
    authority: Authority, fresh: bool
) -> None:
    good, bad = authority.server(host="as.test"), authority.server(host="other.test")
    with (
        FaultyServer(default=TOKEN, tls=good) as server,
        FaultyServer(default=TOKEN, tls=bad) as impostor,
        FaultyServer(default=tunnel) as proxy,
    ):
        channel = BackChannel(ca_bundle=str(authority.bundle), proxies={"https": proxy.url})
        url = f"https://as.test:{server.url.rpartition(':')[2]}/token"
        assert isinstance(post(channel, url, fresh=fresh), Answer)
        late = post(channel, url, fresh=fresh, may_write=lambda: False)
        assert late == Failure(written=False, reason="window")
        url = f"https://as.test:{impostor.url.rpartition(':')[2]}/token"
        assert post(channel, url, fresh=fresh) == Failure(written=False, reason="tls")
        assert (len(server.requests), len(impostor.requests)) == (1, 0)
        channel.close()


@pytest.mark.parametrize("behaviour", [Reply(407), Cut()])
def test_a_proxy_that_refuses_got_nothing(behaviour: Callable[[Exchange], None]) -> None:
    with FaultyServer(default=behaviour) as proxy:
        result = post(BackChannel(proxies={"https": proxy.url}), "https://as.test/token")
    assert isinstance(result, Failure)
    assert not result.written


def test_b14_the_ca_bundle_of_the_environment_is_read_once_per_origin(
    authority: Authority, environment: pytest.MonkeyPatch
) -> None:
    with (
        FaultyServer(default=TOKEN, tls=authority.server()) as server,
        FaultyServer(default=TOKEN, tls=authority.server()) as other,
    ):
        channel = BackChannel()
        environment.setenv("REQUESTS_CA_BUNDLE", str(authority.bundle))
        assert isinstance(post(channel, server.url), Answer)
        environment.delenv("REQUESTS_CA_BUNDLE")
        assert isinstance(post(channel, server.url), Answer)
        assert post(channel, other.url) == Failure(written=False, reason="tls")


# -- many at once, and many processes


def test_many_threads_get_their_own_answers(channel: BackChannel) -> None:
    def echo(request: Request) -> Reply:
        return Reply(200, {"n": request.parameter("n")})

    def ask(n: int) -> bool:
        answer = channel.send(
            "POST",
            server.url,
            form={"n": str(n)},
            deadline=monotonic() + 10,
            fresh=n % 2 == 0,
        )
        return isinstance(answer, Answer) and answer.json() == {"n": str(n)}

    with FaultyServer(default=respond(echo)) as server, ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(200)))


def test_one_watchdog_serves_all(channel: BackChannel) -> None:
    with FaultyServer(default=Hang()) as server, ThreadPoolExecutor(16) as pool:
        others = set(threading.enumerate())
        started = monotonic()
        timeouts = [0.4 + 0.02 * n for n in range(16)]
        waiting = [pool.submit(post, channel, server.url, timeout=t) for t in timeouts]
        server.wait_for(16)
        mine = [t.name for t in threading.enumerate() if t not in others]
        assert mine.count("flask-atm-watchdog") <= 1  # none: that of an earlier test still runs
        ended = {one.result() for one in waiting}
        assert monotonic() - started < 2.0
    assert ended == {Failure(written=True, reason="timeout")}


def test_places_are_limited() -> None:
    channel = BackChannel(max_concurrency=2)
    soon = monotonic() + 0.05
    with channel.place(soon) as first, channel.place(soon) as second, channel.place(soon) as third:
        assert (first, second, third) == (True, True, False)
    with channel.place(monotonic() - 1) as again:
        assert again


def test_nothing_is_left_open(channel: BackChannel) -> None:
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    with FaultyServer(default=TOKEN) as server, silent_url() as silent:

        def some() -> int:
            for _ in range(3):
                post(channel, server.url)
                post(channel, server.url, may_write=lambda: False)
                post(channel, silent, timeout=0.05)
            server.wait_closed()
            return len(os.listdir(folder))

        assert some() == some()


def in_a_child(work: Callable[[], bool]) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of this test, from 3.12 on
        child = os.fork()
    if not child:
        status = 1
        try:
            status = 0 if work() else 1
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def test_a_fork_after_use_shares_nothing(channel: BackChannel) -> None:
    with FaultyServer(default=TOKEN) as server:

        def works() -> bool:
            late = post(channel, f"{server.url}/hang", timeout=0.8)
            return isinstance(post(channel, server.url, fresh=False), Answer) and (
                late == Failure(written=True, reason="timeout")
            )

        server.always(Hang(), path="/hang")
        assert works()
        assert in_a_child(works)
        assert works()
    connections = [r.connection for r in server.requests if r.path != "/hang"]
    assert connections[0] == connections[2] != connections[1]


def test_a_fork_while_another_thread_is_at_work(channel: BackChannel) -> None:
    held = Held(TOKEN)
    with FaultyServer(default=TOKEN) as server, ThreadPoolExecutor() as pool:
        server.add(held, path="/held")
        channel_places = channel.place(monotonic() + 1)
        with channel_places:
            busy = pool.submit(post, channel, f"{server.url}/held")
            held.wait()

            def works() -> bool:
                with channel.place(monotonic() + 1) as taken:
                    return taken and isinstance(post(channel, server.url), Answer)

            assert in_a_child(works)
        held.release()
        assert isinstance(busy.result(), Answer)


# -- a session of the application


def by_session(session: requests.Session, **options: Any) -> BackChannel:
    return BackChannel(http_session=lambda name: session, **options)


def test_the_session_is_asked_for_by_name() -> None:
    names = []

    def http_session(name: str) -> requests.Session | None:
        names.append(name)
        return None

    with FaultyServer(default=TOKEN) as server:
        post(BackChannel(http_session=http_session), server.url, name="billing")
    assert names == ["billing"]
    assert len(server.requests) == 1


def test_b8_the_retries_of_a_session_are_not_inherited() -> None:
    patient = Retry(3, allowed_methods=None, status_forcelist=[503], backoff_factor=0)
    with requests.Session() as session, FaultyServer(default=Reply(503, {})) as server:
        adapter = HTTPAdapter(max_retries=patient)
        session.mount("http://", adapter)
        answer = post(by_session(session), server.url)
        assert isinstance(answer, Answer)
        server.always(Cut())
        assert post(by_session(session), server.url) == Failure(written=True, reason="reset")
        assert adapter.max_retries is patient
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", REDIRECTS)
def test_b5_a_session_does_not_follow_redirects(status: int) -> None:
    with (
        FaultyServer() as other,
        FaultyServer(redirect(status, other.url)) as server,
        requests.Session() as session,
    ):
        answer = post(by_session(session), server.url)
    assert isinstance(answer, Answer)
    assert (answer.status, other.connections_opened) == (status, 0)


def test_a_session_brings_connections_and_headers_and_keeps_no_cookies() -> None:
    with (
        requests.Session() as session,
        FaultyServer(default=Reply(200, {}, {"Set-Cookie": "user=alice"})) as server,
    ):
        session.headers["X-Tenant"] = "blue"
        for _ in range(2):
            assert isinstance(post(by_session(session), server.url), Answer)
        assert not session.cookies
    assert server.connections_opened == 1
    assert [r.header("Cookie") for r in server.requests] == [None, None]
    assert [r.header("X-Tenant") for r in server.requests] == ["blue", "blue"]


def test_a_session_that_does_not_verify_is_refused() -> None:
    with requests.Session() as session:
        session.verify = False
        with pytest.raises(ConfigurationError, match="verify"):
            post(by_session(session), "https://as.test/")


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [(Flood(), "too_large"), (GzipBomb(), "too_large"), (Cut("body"), "short"), (Cut(), "reset")],
)
def test_a_session_is_held_to_size_and_wholeness(
    behaviour: Callable[[Exchange], None], reason: str
) -> None:
    with requests.Session() as session, FaultyServer(behaviour) as server:
        result = post(by_session(session), server.url)
    assert isinstance(result, Failure)
    assert (result.written, result.reason) == (True, reason)


def test_a_session_is_held_to_the_deadline_in_the_body() -> None:
    with requests.Session() as session, FaultyServer(Drip(0.05)) as server:
        started = monotonic()
        result = post(by_session(session), server.url, timeout=0.5)
        assert monotonic() - started < 2
    assert result == Failure(written=True, reason="timeout")


def test_a_session_says_not_written_for_failed_connects_only() -> None:
    with requests.Session() as session, refusing_url() as refusing, silent_url() as silent:
        channel = by_session(session, connect_timeout=0.2)
        assert post(channel, refusing) == Failure(written=False, reason="refused")
        assert post(channel, silent) == Failure(written=False, reason="timeout")
        assert post(channel, "https://as.invalid/") == Failure(written=False, reason="dns")
        late = post(channel, refusing, may_write=lambda: False)
        assert late == Failure(written=False, reason="window")
        assert post(channel, silent, timeout=-1) == Failure(written=False, reason="timeout")


def test_a_session_that_meets_no_tls_may_have_written() -> None:
    with requests.Session() as session, FaultyServer(default=TOKEN) as server:
        result = post(by_session(session), server.url.replace("http:", "https:"))
    assert isinstance(result, Failure)
    assert result.written
