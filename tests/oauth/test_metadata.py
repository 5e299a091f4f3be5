"""Metadata and keys of servers: found, checked, kept, renewed; against real HTTP servers."""

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flask_atm.errors import ATMError, ConfigurationError, ProtocolError, ServerUnavailable
from flask_atm.oauth.back_channel import BackChannel
from flask_atm.oauth.id_token import (
    IDTokenRejected,
    IDTokenRules,
    KeysUnavailable,
    allowed_algorithms,
    validate,
)
from flask_atm.oauth.metadata import (
    ENDPOINTS,
    MetadataCache,
    ServerLocation,
    ServerMetadata,
)
from flask_atm.tokens import FrozenDict
from tests.servers import (
    Cut,
    FaultyServer,
    Flood,
    Held,
    OIDCServer,
    Raw,
    Reply,
    redirect,
    refusing_url,
)

from .test_keys import ED25519, P256, RSA_2048, UNSUITABLE, public_jwk

OPENID = "/.well-known/openid-configuration"
OAUTH = "/.well-known/oauth-authorization-server"
JWKS = {"keys": [public_jwk(RSA_2048, kid="one")]}
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
NEW_JWKS = {"keys": [public_jwk(P256, kid="two")]}


class Instants:
    """Both clocks of a cache, turned by hand."""

    def __init__(self) -> None:
        self.epoch = 1_800_000_000.0
        self.monotonic = 1000.0

    def advance(self, seconds: float) -> None:
        self.epoch += seconds
        self.monotonic += seconds


def document(server: FaultyServer, **changes: Any) -> dict[str, Any]:
    """Make the metadata of a server; ``...`` takes a member away."""
    members = {
        "issuer": server.url,
        "authorization_endpoint": f"{server.url}/auth",
        "token_endpoint": f"{server.url}/token",
        "jwks_uri": f"{server.url}/jwks",
        "revocation_endpoint": f"{server.url}/revoke",
        "introspection_endpoint": f"{server.url}/introspect",
        **changes,
    }
    return {name: value for name, value in members.items() if value is not ...}


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as running:
        running.always(Reply(body=document(running)), path=OPENID)
        running.always(Reply(body=JWKS), path="/jwks")
        yield running


@pytest.fixture
def instants() -> Instants:
    return Instants()


@pytest.fixture
def cache(instants: Instants) -> MetadataCache:
    return new_cache(instants)


def new_cache(instants: Instants, timeout: float = 10.0, **settings: Any) -> MetadataCache:
    return MetadataCache(
        BackChannel(**settings),
        clock=lambda: instants.epoch,
        timeout=timeout,
        monotonic=lambda: instants.monotonic,
    )


def at(server: FaultyServer, **changes: Any) -> ServerLocation:
    return ServerLocation(**{"name": "oidc", "issuer": server.url, **changes})


def asked(server: FaultyServer, path: str | None = None) -> int:
    return len([one for one in server.requests if path in (None, one.path)])


# -- finding the document


def test_the_document_lies_at_the_issuer(server: FaultyServer, cache: MetadataCache) -> None:
    found = cache.get(at(server))
    assert found.provider == "oidc"
    assert found.issuer == server.url
    assert found.token_endpoint == f"{server.url}/token"
    assert found.jwks_uri == f"{server.url}/jwks"
    assert found.userinfo_endpoint is None
    assert found.document == document(server)
    assert [(one.method, one.path) for one in server.requests] == [("GET", OPENID)]


@pytest.mark.parametrize("end", ["", "/"])
def test_a_path_stands_before_openid_and_after_oauth(
    server: FaultyServer, cache: MetadataCache, end: str
) -> None:
    issuer = f"{server.url}/realms/a b".replace(" ", "%20") + end
    path = "/realms/a%20b"
    server.always(Reply(body=document(server, issuer=issuer)), path=f"{OAUTH}{path}")
    assert cache.get(at(server, issuer=issuer)).issuer == issuer
    assert [one.path for one in server.requests] == [f"{path}{OPENID}", f"{OAUTH}{path}"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410])
def test_rfc_8414_stands_in_where_there_is_no_openid(
    server: FaultyServer, cache: MetadataCache, status: int
) -> None:
    server.always(Reply(status), path=OPENID)
    server.always(Reply(body=document(server)), path=OAUTH)
    assert cache.get(at(server)).token_endpoint == f"{server.url}/token"


@pytest.mark.parametrize("missing", ["revocation_endpoint", "introspection_endpoint"])
def test_rfc_8414_completes_what_openid_leaves_out(
    server: FaultyServer, cache: MetadataCache, missing: str
) -> None:
    server.always(Reply(body=document(server, **{missing: ...})), path=OPENID)
    other = document(server, token_endpoint=f"{server.url}/other")
    server.always(Reply(body=other), path=OAUTH)
    found = cache.get(at(server))
    assert getattr(found, missing) == other[missing]
    assert found.token_endpoint == f"{server.url}/token"


def test_rfc_8414_is_asked_only_when_something_is_missing(
    server: FaultyServer, cache: MetadataCache
) -> None:
    cache.get(at(server))
    assert asked(server, OAUTH) == 0
    server.always(Reply(body=document(server, revocation_endpoint=...)), path=OPENID)
    cache.get(at(server, endpoints={"revocation_endpoint": f"{server.url}/own"}))
    assert asked(server, OAUTH) == 0


@pytest.mark.parametrize(
    "answer",
    [
        Reply(404),
        Reply(500),
        Cut(),
        Reply(200, b"<html>"),
        Reply(200, {"issuer": "https://x.example"}),
    ],
    ids=["none", "error", "cut", "html", "issuer"],
)
def test_a_failed_completion_is_no_error(
    server: FaultyServer, cache: MetadataCache, answer: Any
) -> None:
    server.always(Reply(body=document(server, revocation_endpoint=...)), path=OPENID)
    server.always(answer, path=OAUTH)
    found = cache.get(at(server))
    assert found.revocation_endpoint is None
    assert found.token_endpoint == f"{server.url}/token"


def test_a_completion_that_failed_is_tried_again_in_five_minutes(
    server: FaultyServer, cache: MetadataCache, instants: Instants
) -> None:
    server.always(Reply(body=document(server, revocation_endpoint=...)), path=OPENID)
    server.add(Reply(503), path=OAUTH)
    server.always(Reply(body=document(server)), path=OAUTH)
    assert cache.get(at(server)).revocation_endpoint is None
    instants.advance(299)
    assert cache.get(at(server)).revocation_endpoint is None
    instants.advance(2)
    assert cache.get(at(server)).revocation_endpoint == f"{server.url}/revoke"


def test_the_metadata_url_is_the_only_place_that_is_asked(
    server: FaultyServer, cache: MetadataCache
) -> None:
    server.always(Reply(body=document(server, revocation_endpoint=...)), path="/meta")
    cache.get(at(server, metadata_url=f"{server.url}/meta"))
    assert [one.path for one in server.requests] == ["/meta"]


def test_configured_endpoints_win(server: FaultyServer, cache: MetadataCache) -> None:
    server.always(Reply(body=document(server, token_endpoint="ftp://old")), path=OPENID)
    found = cache.get(at(server, endpoints=FrozenDict(token_endpoint=f"{server.url}/mine")))
    assert found.token_endpoint == f"{server.url}/mine"
    assert found.authorization_endpoint == f"{server.url}/auth"


def test_endpoints_alone_need_no_request(server: FaultyServer, cache: MetadataCache) -> None:
    place = at(server, issuer=None, endpoints={"token_endpoint": f"{server.url}/token"})
    for found in (cache.peek(place), cache.get(place)):
        assert found is not None
        assert found.token_endpoint == f"{server.url}/token"
        assert found.issuer is None
    assert server.requests == []


def test_a_server_without_metadata_works_by_configured_endpoints(
    server: FaultyServer, cache: MetadataCache
) -> None:
    server.always(Reply(404), path=OPENID)
    found = cache.get(at(server, endpoints={"token_endpoint": f"{server.url}/token"}))
    assert (found.issuer, found.token_endpoint) == (server.url, f"{server.url}/token")


def test_no_metadata_at_all_names_the_cure(server: FaultyServer, cache: MetadataCache) -> None:
    server.always(Reply(404), path=OPENID)
    with pytest.raises(ProtocolError, match="Check the issuer, or set the metadata URL") as caught:
        cache.get(at(server))
    assert f"{server.url}{OPENID}" in str(caught.value)
    assert "'oidc'" in str(caught.value)


# -- H1: the issuer


@pytest.mark.parametrize(
    "found",
    ["{url}/", "{upper}", "https://evil.example", " {url}", "", None, ["{url}"], 1],
    ids=str,
)
def test_h1_another_issuer_is_rejected(
    server: FaultyServer, cache: MetadataCache, found: Any
) -> None:
    if isinstance(found, str):
        found = found.format(url=server.url, upper=server.url.upper())
    server.always(Reply(body=document(server, issuer=found)), path=OPENID)
    with pytest.raises(ProtocolError) as caught:
        cache.get(at(server))
    message = str(caught.value)
    assert repr(found) in message
    assert repr(server.url) in message
    assert "configured" in message
    assert "check the URL" in message


def test_h1_a_missing_issuer_is_rejected(server: FaultyServer, cache: MetadataCache) -> None:
    server.always(Reply(body=document(server, issuer=...)), path=OPENID)
    with pytest.raises(ProtocolError, match="issuer None"):
        cache.get(at(server))


def test_h1_the_metadata_url_does_not_change_the_issuer(
    server: FaultyServer, cache: MetadataCache
) -> None:
    place = at(server, issuer="https://id.example.com", metadata_url=f"{server.url}{OPENID}")
    with pytest.raises(ProtocolError, match="to the letter"):
        cache.get(place)
    with pytest.raises(ConfigurationError, match="set the issuer"):
        cache.get(at(server, issuer=None, metadata_url=f"{server.url}{OPENID}"))


def test_h1_rfc_8414_is_checked_too(server: FaultyServer, cache: MetadataCache) -> None:
    server.always(Reply(404), path=OPENID)
    server.always(Reply(body=document(server, issuer=f"{server.url}/")), path=OAUTH)
    with pytest.raises(ProtocolError, match="to the letter"):
        cache.get(at(server))


def test_an_issuer_with_a_placeholder_asks_for_a_provider_per_tenant(
    server: FaultyServer, cache: MetadataCache
) -> None:
    template = "https://login.microsoftonline.com/{tenantid}/v2.0"
    server.always(Reply(body=document(server, issuer=template)), path=f"/common{OPENID}")
    with pytest.raises(ProtocolError, match="one provider per tenant"):
        cache.get(at(server, issuer=f"{server.url}/common"))
    with pytest.raises(ConfigurationError, match="one provider per tenant"):
        cache.get(at(server, issuer=template))


# -- H2, G16: where endpoints may be


@pytest.mark.parametrize("name", ENDPOINTS)
def test_h2_endpoints_are_refused_by_scheme(
    server: FaultyServer, instants: Instants, name: str
) -> None:
    urls: list[object] = [
        "http://id.example.com/x",
        "file:///etc/passwd",
        "data:text/plain,x",
        "ftp://id.example.com/x",
        "javascript:alert(1)",
        "//id.example.com/x",
        "https://user:pw@id.example.com/x",
        7,
        [],
    ]
    for url in urls:
        server.always(Reply(body=document(server, **{name: url})), path=OPENID)
        with pytest.raises(ProtocolError, match=f"have a {name} that cannot be used"):
            new_cache(instants).get(at(server))


@pytest.mark.parametrize("url", ["https://oauth2.googleapis.com/token", "HTTPS://ID.example/t?a=b"])
def test_h2_other_hosts_are_fine(server: FaultyServer, cache: MetadataCache, url: str) -> None:
    server.always(Reply(body=document(server, token_endpoint=url)), path=OPENID)
    assert cache.get(at(server)).token_endpoint == url


def test_h2_allowed_endpoint_hosts_narrow_them(server: FaultyServer, instants: Instants) -> None:
    url = "https://oauth2.googleapis.com/token"
    server.always(Reply(body=document(server, token_endpoint=url)), path=OPENID)
    narrow = new_cache(instants, allowed_endpoint_hosts=["127.0.0.1"])
    with pytest.raises(ProtocolError, match="allowed_endpoint_hosts"):
        narrow.get(at(server))


def test_h2_configured_endpoints_are_checked_too(
    server: FaultyServer, cache: MetadataCache
) -> None:
    for issuer in (server.url, None):
        place = at(server, issuer=issuer, endpoints={"token_endpoint": "http://id.example.com/t"})
        with pytest.raises(ConfigurationError, match="allowed_http_hosts"):
            cache.get(place)
    assert server.requests == []


def test_g16_a_plain_http_issuer_is_refused(cache: MetadataCache) -> None:
    place = ServerLocation(name="oidc", issuer="http://id.example.com")
    for _ in range(2):  # a wrong configuration is no reason to pause
        with pytest.raises(ConfigurationError, match="allowed_http_hosts"):
            cache.get(place)


# -- what the document says


def test_g4_g5_what_sign_ins_need_to_know(server: FaultyServer, cache: MetadataCache) -> None:
    server.always(
        Reply(
            body=document(
                server,
                code_challenge_methods_supported=["plain"],
                authorization_response_iss_parameter_supported=True,
                id_token_signing_alg_values_supported=["ES256", "none"],
                token_endpoint_auth_methods_supported=["none", 1],
                scopes_supported=["openid"],
            )
        ),
        path=OPENID,
    )
    found = cache.get(at(server))
    assert found.code_challenge_methods_supported == ("plain",)
    assert found.authorization_response_iss_parameter_supported is True
    assert found.token_endpoint_auth_methods_supported == ("none",)
    assert found.scopes_supported == ("openid",)
    advertised = found.id_token_signing_alg_values_supported
    assert allowed_algorithms((), advertised) == ("ES256",)


def test_g4_what_a_server_does_not_say_is_none(server: FaultyServer, cache: MetadataCache) -> None:
    odd = {"code_challenge_methods_supported": "S256", "scopes_supported": None}
    odd["authorization_response_iss_parameter_supported"] = "true"
    server.always(Reply(body=document(server, **odd)), path=OPENID)
    found = cache.get(at(server))
    assert found.code_challenge_methods_supported is None
    assert found.scopes_supported is None
    assert found.token_endpoint_auth_methods_supported is None
    assert found.id_token_signing_alg_values_supported == ()
    assert found.authorization_response_iss_parameter_supported is False


def test_g15_what_was_given_does_not_change(
    server: FaultyServer, cache: MetadataCache, instants: Instants
) -> None:
    methods = "code_challenge_methods_supported"
    server.always(Reply(body=document(server, **{methods: ["S256"]})), path=OPENID)
    before = cache.get(at(server))
    server.always(Reply(body=document(server, **{methods: ["plain"]})), path=OPENID)
    instants.advance(3601)
    assert cache.get(at(server)).code_challenge_methods_supported == ("plain",)
    assert before.code_challenge_methods_supported == ("S256",)


# -- wrong and missing answers

UNAVAILABLE = {
    "500": Reply(500),
    "503": Reply(503, {"error": "x"}),
    "429": Reply(429),
    "301": redirect(301, "https://id.example.com"),
    "307": redirect(307, "https://id.example.com"),
    "cut": Cut(),
    "cut body": Cut("body", Reply(200, {"issuer": "x" * 100})),
}
WRONG = {
    "html": Reply(200, b"<html>"),
    "list": Reply(200, []),
    "empty": Reply(200, b""),
    "duplicate": Reply(200, b'{"issuer": "a", "issuer": "b"}'),
    "NaN": Reply(200, b'{"issuer": NaN}'),
    "deep": Reply(200, b"[" * 100_000),
    "204": Reply(204),
    "large": Flood(600 * 1024),
}


@pytest.mark.parametrize("answer", UNAVAILABLE.values(), ids=UNAVAILABLE)
def test_no_answer_is_server_unavailable(
    server: FaultyServer, cache: MetadataCache, answer: Any
) -> None:
    found = cache.get(at(server))
    server.always(answer, path=OPENID)
    server.always(answer, path="/jwks")
    with pytest.raises(ServerUnavailable) as caught:
        cache.get(at(server, name="second"))
    assert caught.value.provider == "second"
    assert f"{server.url}{OPENID}" in str(caught.value)
    with pytest.raises(ServerUnavailable, match="JWKS"):
        cache.keys(found)


@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG)
def test_a_wrong_answer_is_a_protocol_error(
    server: FaultyServer, cache: MetadataCache, answer: Any
) -> None:
    found = cache.get(at(server))
    server.always(answer, path=OPENID)
    server.always(answer, path="/jwks")
    with pytest.raises(ProtocolError, match=f"'second' at {server.url}{OPENID}"):
        cache.get(at(server, name="second"))
    with pytest.raises(ProtocolError, match=f"'oidc' at {server.url}/jwks"):
        cache.keys(found)


def test_nobody_there_is_server_unavailable(cache: MetadataCache) -> None:
    with refusing_url() as url, pytest.raises(ServerUnavailable, match="nobody accepts"):
        cache.get(ServerLocation(name="oidc", issuer=url))


@pytest.mark.parametrize(
    "answer", [Reply(404), Reply(200, {}), Reply(200, {"keys": "RSA"})], ids=str
)
def test_a_jwks_that_is_none_names_the_cure(
    server: FaultyServer, cache: MetadataCache, answer: Reply
) -> None:
    server.always(answer, path="/jwks")
    with pytest.raises(ProtocolError, match="Check the"):
        cache.keys(cache.get(at(server)))


def test_a_server_without_jwks_names_the_cure(server: FaultyServer, cache: MetadataCache) -> None:
    server.always(Reply(body=document(server, jwks_uri=...)), path=OPENID)
    found = cache.get(at(server))
    cache.warm(found)
    with pytest.raises(ProtocolError, match="Configure its jwks_uri"):
        cache.keys(found)


# -- H3: kept, renewed, kept on


def test_h3_nothing_is_fetched_before_it_is_needed(
    server: FaultyServer, cache: MetadataCache
) -> None:
    assert cache.peek(at(server)) is None
    assert server.requests == []
    found = cache.get(at(server))
    assert cache.peek(at(server)) is found
    assert asked(server) == 1


def test_h3_the_document_is_renewed_once_an_hour(
    server: FaultyServer, cache: MetadataCache, instants: Instants
) -> None:
    first = cache.get(at(server))
    instants.advance(3599)
    assert cache.get(at(server)) is first
    assert asked(server) == 1
    server.always(Reply(body=document(server, token_endpoint=f"{server.url}/new")), path=OPENID)
    instants.advance(2)
    assert cache.get(at(server)).token_endpoint == f"{server.url}/new"
    assert asked(server) == 2


@pytest.mark.parametrize(
    "answer",
    [
        *UNAVAILABLE.values(),
        *WRONG.values(),
        Reply(404),
        Reply(200, {"issuer": "https://evil.example"}),
    ],
    ids=[*UNAVAILABLE, *WRONG, "gone", "issuer"],
)
def test_h3_the_last_good_document_serves_for_a_day(
    server: FaultyServer, cache: MetadataCache, instants: Instants, answer: Any
) -> None:
    good = cache.get(at(server))
    keys = cache.keys(good)
    server.always(answer, path=OPENID)
    server.always(answer, path="/jwks")
    instants.advance(86399)
    assert cache.get(at(server)) is good
    assert cache.keys(good) is keys
    assert cache.peek(at(server)) is good
    instants.advance(2)
    assert cache.peek(at(server)) is None
    with pytest.raises((ServerUnavailable, ProtocolError)):
        cache.get(at(server))
    with pytest.raises((ServerUnavailable, ProtocolError)):
        cache.keys(good)


def test_h3_attempts_pause_longer_and_longer_while_an_old_document_serves(
    server: FaultyServer, cache: MetadataCache, instants: Instants
) -> None:
    cache.get(at(server))
    server.always(Reply(500), path=OPENID)
    instants.advance(3600)
    at_second = []
    for second in range(0, 1200):
        before = asked(server)
        cache.get(at(server))
        if asked(server) > before:
            at_second.append(second)
        instants.advance(1)
    assert at_second == [0, 30, 90, 210, 450, 750, 1050]
    server.always(Reply(body=document(server, token_endpoint=f"{server.url}/new")), path=OPENID)
    instants.advance(300)
    assert cache.get(at(server)).token_endpoint == f"{server.url}/new"


def test_h3_without_a_document_attempts_pause_up_to_half_a_minute(
    server: FaultyServer, cache: MetadataCache, instants: Instants
) -> None:
    server.always(Reply(500), path=OPENID)
    at_second = []
    for second in range(0, 120):
        before = asked(server)
        with pytest.raises(ServerUnavailable) as caught:
            cache.get(at(server))
        assert 1 <= caught.value.retry_after <= 30
        if asked(server) > before:
            at_second.append(second)
        instants.advance(1)
    assert at_second == [0, 1, 3, 7, 15, 31, 61, 91]
    server.always(Reply(body=document(server)), path=OPENID)
    instants.advance(30)
    assert cache.get(at(server)).issuer == server.url


def test_h3_a_clock_that_was_set_back_renews_and_serves(
    server: FaultyServer, cache: MetadataCache, instants: Instants
) -> None:
    good = cache.get(at(server))
    instants.epoch -= 7200
    server.always(Reply(500), path=OPENID)
    assert cache.get(at(server)) is good
    assert asked(server) == 2


def test_h3_the_first_fetch_is_made_once_for_all_threads(
    server: FaultyServer, cache: MetadataCache
) -> None:
    held = Held(Reply(body=document(server)))
    server.always(held, path=OPENID)
    with ThreadPoolExecutor(32) as pool:
        waiting = [pool.submit(cache.get, at(server)) for _ in range(32)]
        held.wait()
        held.release()
        found = {id(one.result(10)) for one in waiting}
    assert len(found) == 1
    assert asked(server) == 1


def test_h3_a_failed_first_fetch_fails_all_that_wait_for_it(
    server: FaultyServer, cache: MetadataCache
) -> None:
    held = Held(Reply(500))
    server.always(held, path=OPENID)
    with ThreadPoolExecutor(16) as pool:
        waiting = [pool.submit(cache.get, at(server)) for _ in range(16)]
        held.wait()
        held.release()
        errors = [one.exception(10) for one in waiting]
    assert {type(error) for error in errors} == {ServerUnavailable}
    assert len(set(map(id, errors))) == 16
    assert asked(server) == 1


def test_h3_the_old_document_is_served_while_one_thread_renews_it(
    server: FaultyServer, cache: MetadataCache, instants: Instants
) -> None:
    old = cache.get(at(server))
    held = Held(Reply(body=document(server, token_endpoint=f"{server.url}/new")))
    server.always(held, path=OPENID)
    instants.advance(3601)
    with ThreadPoolExecutor(1) as pool:
        renewing = pool.submit(cache.get, at(server))
        held.wait()
        assert [cache.get(at(server)) for _ in range(100)] == [old] * 100  # nothing waits
        assert not renewing.done()
        held.release()
        new = renewing.result(10)
    assert new.token_endpoint == f"{server.url}/new"
    assert cache.get(at(server)) is new
    assert asked(server) == 2


def test_h3_whoever_waits_does_not_wait_for_ever(server: FaultyServer, instants: Instants) -> None:
    held = Held()
    server.always(held, path=OPENID)
    cache = new_cache(instants, timeout=0.2)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(cache.get, at(server)) for _ in range(4)]
        errors = [one.exception(10) for one in waiting]
    assert {type(error) for error in errors} == {ServerUnavailable}
    held.release()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_fork_in_the_middle_of_a_fetch_leaves_no_lock_behind(
    server: FaultyServer, cache: MetadataCache
) -> None:
    held = Held(Reply(body=document(server)))
    server.add(held, path=OPENID)
    fetching = threading.Thread(target=cache.get, args=(at(server),))
    fetching.start()
    held.wait()
    child = _fork(lambda: cache.get(at(server)).issuer == server.url)
    held.release()
    fetching.join(10)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert asked(server) == 2


def _fork(check: Callable[[], bool]) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        status = 0 if check() else 2
    finally:
        os._exit(status)


def test_locations_and_issuers_are_kept_apart(server: FaultyServer, cache: MetadataCache) -> None:
    one = cache.get(at(server))
    two = cache.get(at(server, endpoints={"token_endpoint": f"{server.url}/own"}))
    three = cache.get(at(server, name="other"))
    assert one.token_endpoint != two.token_endpoint
    assert [found.provider for found in (one, two, three)] == ["oidc", "oidc", "other"]


def test_the_number_of_documents_is_bounded(server: FaultyServer, cache: MetadataCache) -> None:
    for number in range(1200):
        endpoints = {"token_endpoint": f"{server.url}/{number}"}
        cache.get(ServerLocation(name=str(number), endpoints=endpoints))
    assert len(cache._servers) == 1000


def test_a_failed_renewal_is_logged_as_a_warning(
    server: FaultyServer,
    cache: MetadataCache,
    instants: Instants,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache.get(at(server))
    server.always(Reply(500), path=OPENID)
    instants.advance(3601)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "flask_atm"):
        for _ in range(10):
            cache.get(at(server))
    assert [one.levelname for one in caplog.records] == ["WARNING"]
    assert "An older copy is used" in caplog.text


# -- keys


def test_keys_are_found_by_name_and_kept(server: FaultyServer, cache: MetadataCache) -> None:
    found = cache.get(at(server))
    assert asked(server, "/jwks") == 0
    cache.warm(found)
    cache.warm(found)
    key = cache.find_key(found, "one", "RS256")
    assert key is not None
    assert key.kid == "one"
    assert cache.find_key(found, None, "PS256") == key
    assert asked(server, "/jwks") == 1


def test_keys_of_a_name_come_before_those_without(
    server: FaultyServer, cache: MetadataCache
) -> None:
    members = [
        public_jwk(ED25519),
        public_jwk(RSA_2048),
        public_jwk(P256, kid="x"),
        public_jwk(RSA_2048, kid="x"),
    ]
    server.always(Reply(body={"keys": members}), path="/jwks")
    found = cache.get(at(server))
    families = [(key.kid, key.family) for key in cache.candidates(found, "x", "RS256")]
    assert families == [("x", "P-256"), ("x", "RSA"), (None, "RSA")]
    assert [key.family for key in cache.candidates(found, None, "RS256")] == ["RSA", "RSA"]
    key = cache.find_key(found, "x", "RS256")
    assert key is not None
    assert (key.kid, key.family) == ("x", "RSA")


def test_while_a_lease_is_held_keys_come_from_here_only(
    server: FaultyServer, cache: MetadataCache, instants: Instants
) -> None:
    found = cache.get(at(server))
    assert list(cache.candidates(found, "one", "RS256", fetch=False)) == []
    cache.warm(found)
    instants.advance(3601)
    assert [key.kid for key in cache.candidates(found, "one", "RS256", fetch=False)] == ["one"]
    assert list(cache.candidates(found, "two", "RS256", fetch=False)) == []
    assert asked(server, "/jwks") == 1


def test_h4_a_flood_of_unknown_names_fetches_once_in_30_seconds(
    server: FaultyServer, cache: MetadataCache, instants: Instants
) -> None:
    found = cache.get(at(server))
    cache.warm(found)
    for second in range(90):
        for number in range(20):
            assert cache.find_key(found, f"{second}-{number}", "RS256") is None
        instants.advance(1)
    assert asked(server, "/jwks") == 1 + 3


def test_h4_also_from_many_threads_and_while_the_jwks_is_down(
    server: FaultyServer, cache: MetadataCache
) -> None:
    found = cache.get(at(server))
    cache.warm(found)
    server.always(Reply(500), path="/jwks")

    def ask(number: int) -> bool:
        try:
            return cache.find_key(found, f"k{number}", "RS256") is None
        except ServerUnavailable:
            return True

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(400)))
    assert asked(server, "/jwks") == 1 + 1
    key = cache.find_key(found, "one", "RS256")
    assert key is not None  # what is known is still there
    assert asked(server, "/jwks") == 1 + 1


def test_h5_a_large_jwks_is_read_in_bounds(server: FaultyServer, cache: MetadataCache) -> None:
    texts = {json.dumps(value) for value in UNSUITABLE.values()}
    odd = [json.loads(text) for text in texts if len(text) < 5000 and "ud800" not in text]
    many = [{"kty": "oct", "k": "AAAA", "kid": str(number)} for number in range(10_000)]
    server.always(Reply(body={"keys": [*odd, *many, *JWKS["keys"]]}), path="/jwks")
    keys = cache.keys(cache.get(at(server)))
    assert [key.kid for key in keys] == ["one"]
    server.always(Flood(10 * 1024 * 1024), path="/jwks2")
    server.always(Reply(body=document(server, jwks_uri=f"{server.url}/jwks2")), path=OPENID)
    with pytest.raises(ProtocolError, match="larger than 524288 bytes"):
        cache.keys(cache.get(at(server, name="second")))


def test_h10_rotated_keys_are_fetched_once_and_verify(
    server: FaultyServer, cache: MetadataCache
) -> None:
    found = cache.get(at(server))
    cache.warm(found)
    server.always(Reply(body={"keys": JWKS["keys"] + NEW_JWKS["keys"]}), path="/jwks")
    with ThreadPoolExecutor(16) as pool:
        keys = list(pool.map(lambda _: cache.find_key(found, "two", "ES256"), range(16)))
    assert {key and key.kid for key in keys} == {"two"}
    assert asked(server, "/jwks") == 2


def test_h10_a_rotated_key_without_a_name_is_found_too(
    server: FaultyServer, cache: MetadataCache, instants: Instants
) -> None:
    unnamed = {name: value for name, value in JWKS["keys"][0].items() if name != "kid"}
    old = {**unnamed, "n": public_jwk(OTHER_RSA)["n"]}
    server.always(Reply(body={"keys": [old]}), path="/jwks")
    found = cache.get(at(server))
    cache.warm(found)
    server.always(Reply(body={"keys": [unnamed]}), path="/jwks")
    check_token(cache, found, instants, kid=None)
    assert asked(server, "/jwks") == 2


def test_h10_another_key_under_the_same_name_is_found_too(
    server: FaultyServer, cache: MetadataCache, instants: Instants
) -> None:
    server.always(Reply(body={"keys": [public_jwk(OTHER_RSA, kid="one")]}), path="/jwks")
    found = cache.get(at(server))
    cache.warm(found)
    server.always(Reply(body=JWKS), path="/jwks")
    check_token(cache, found, instants, kid="one")
    assert asked(server, "/jwks") == 2


def test_h8_unknown_key_and_jwks_down_is_no_proof(
    server: FaultyServer, cache: MetadataCache, instants: Instants
) -> None:
    found = cache.get(at(server))
    cache.warm(found)
    server.always(Reply(503), path="/jwks")
    with pytest.raises(KeysUnavailable) as caught:
        check_token(cache, found, instants, kid="two")
    assert isinstance(caught.value.__cause__, ServerUnavailable)


def test_h8_a_wrong_signature_of_a_known_key_is_a_proof_though_the_jwks_is_down(
    server: FaultyServer, cache: MetadataCache, instants: Instants
) -> None:
    server.add(Reply(body={"keys": [public_jwk(OTHER_RSA, kid="one")]}), path="/jwks")
    server.always(Reply(503), path="/jwks")
    found = cache.get(at(server))
    with pytest.raises(IDTokenRejected) as caught:
        check_token(cache, found, instants, kid="one")
    assert caught.value.reason == "signature"


def check_token(
    cache: MetadataCache, found: ServerMetadata, instants: Instants, *, kid: str | None
) -> None:
    claims: dict[str, Any] = {"iss": found.issuer, "sub": "a", "aud": "app"}
    claims |= {"iat": instants.epoch, "exp": instants.epoch + 60}
    text = jwt.encode(claims, RSA_2048, algorithm="RS256", headers={"kid": kid} if kid else None)
    rules = IDTokenRules(issuer=found.issuer or "", client_id="app")
    validate(
        text,
        rules,
        keys=lambda name, alg: cache.candidates(found, name, alg),
        now=instants.epoch,
    )


# -- a real provider


def test_the_id_token_of_a_real_provider_is_valid_across_its_rotation() -> None:
    cache = MetadataCache(BackChannel(), timeout=10)
    with OIDCServer() as provider:
        client = provider.add_client("http://localhost:5000/callback")
        found = cache.get(ServerLocation(name="oidc", issuer=provider.issuer))
        advertised = found.id_token_signing_alg_values_supported
        rules = IDTokenRules(
            issuer=provider.issuer,
            client_id=client.client_id,
            algorithms=allowed_algorithms((), advertised),
        )
        for _ in range(2):
            tokens = provider.sign_in_directly(client, nonce="n-0S6")
            claims = validate(
                tokens["id_token"],
                rules,
                keys=lambda kid, alg: cache.candidates(found, kid, alg),
                now=provider.now(),
                nonce="n-0S6",
                access_token=tokens["access_token"],
            )
            assert claims["iss"] == provider.issuer
            provider.rotate_keys(keep=False)
        assert len(provider.requests_to("jwks")) == 2
        assert found.authorization_response_iss_parameter_supported
        assert "S256" in (found.code_challenge_methods_supported or ())


# -- N1

NAME = st.sampled_from([*ENDPOINTS, "issuer", "code_challenge_methods_supported", "keys"])
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=st.dictionaries(NAME, VALUE, max_size=4),
    raw=st.none() | st.binary(max_size=60),
)
def test_n1_documents_raise_typed_errors_only(
    server: FaultyServer, changes: dict[str, Any], raw: bytes | None
) -> None:
    body = json.dumps(document(server, **changes)).encode() if raw is None else raw
    server.always(Reply(body=body), path=OPENID)
    server.always(Reply(body=body), path="/jwks")
    cache = new_cache(Instants())
    try:
        found = cache.get(at(server))
        list(cache.candidates(found, "one", "RS256"))
    except ATMError:
        pass


def test_n1_a_cut_head_is_typed_too(server: FaultyServer, cache: MetadataCache) -> None:
    server.always(Raw(b"HTTP/1.1 200 OK\r\nContent-Len"), path=OPENID)
    with pytest.raises(ServerUnavailable):
        cache.get(at(server))
