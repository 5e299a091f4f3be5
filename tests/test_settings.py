"""One reader per kind of value: what it takes, what it makes of it, and what it refuses."""

import math
from pathlib import Path
from typing import Any

import pytest

from flask_atm import settings as read
from flask_atm.config import values as own
from flask_atm.settings import Invalid
from flask_atm.tokens import FrozenDict, Secret

TAKEN: list[tuple[Any, object, object]] = [
    (read.text, "app", "app"),
    (read.text, "two words", "two words"),
    (read.text, 12345, "12345"),
    (read.text, "ünïcode", "ünïcode"),
    (read.secret, "s3cret", Secret("s3cret")),
    (read.secret, " padded ", Secret(" padded ")),
    (read.secret, Secret("x"), Secret("x")),
    (read.secret_or_callable, "s", Secret("s")),
    (read.secret_or_callable, str, str),
    (read.key_material, "a\nb", Secret("a\nb")),
    (read.key_material, b"\xff\x00", Secret("\udcff\x00")),
    (read.name, "GitHub_2", "github_2"),
    (read.choice("a", "b"), "b", "b"),
    (read.scope, "openid  email", ("openid", "email")),
    (read.scope, ["openid", "email", "openid"], ("openid", "email")),
    (read.scope, [], ()),
    (read.listed(read.text), "one", ("one",)),
    (read.listed(read.text), ["b", "a", "b"], ("b", "a")),
    (read.listed(read.text), [], ()),
    (read.boolean, True, True),
    (read.boolean, False, False),
    (read.seconds, 5, 5.0),
    (read.seconds, 0.5, 0.5),
    (read.seconds_or_zero, 0, 0.0),
    (read.whole, 3, 3),
    (read.mapping(read.text), {"a": 1}, FrozenDict(a="1")),
    (
        own.authorize_params,
        {"PROMPT": "login", "extFoo": 1},
        {"prompt": "login", "extFoo": "1"},
    ),
    (own.private_key, {"kty": "EC"}, Secret('{"kty": "EC"}')),
    (own.private_key, "/run/key.pem", Secret("/run/key.pem")),
    (own.cache, "redis://cache", "redis://cache"),
    (own.cache, {"CACHE_TYPE": "SimpleCache"}, FrozenDict(CACHE_TYPE="SimpleCache")),
    (own.store, "postgresql+psycopg://db/app", "postgresql+psycopg://db/app"),
    (read.url, "https://idp.example/a?b=c", "https://idp.example/a?b=c"),
    (read.url, "http://anywhere.example", "http://anywhere.example"),
    (read.url, "https://[::1]:8443/x", "https://[::1]:8443/x"),
    (own.issuer, "https://idp.example/realms/One/", "https://idp.example/realms/One/"),
    (read.uri, "api://orders", "api://orders"),
    (read.uri, "urn:example:orders", "urn:example:orders"),
    (own.base_url, "https://api.example", "https://api.example/"),
    (own.base_url, "https://api.example/v1/", "https://api.example/v1/"),
    (read.origin, "HTTPS://API.example:443/", "https://api.example"),
    (read.origin, "http://api.example:8080", "http://api.example:8080"),
    (read.origin, "https://[::1]:8443", "https://[::1]:8443"),
    (read.host, "Keycloak", "keycloak"),
    (read.host, "[::1]", "::1"),
    (read.host, "10.0.0.1", "10.0.0.1"),
]

REFUSED: list[tuple[Any, object, str]] = [
    (read.text, "", "is set but empty"),
    (read.text, "   ", "is set but empty"),
    (read.text, "app\n", "remove it"),
    (read.text, " app", "remove it"),
    (read.text, "a\x00b", "remove it"),
    (read.text, True, "not a bool"),
    (read.text, 1.5, "not a number; put quotes around it"),
    (read.text, None, "of type NoneType"),
    (read.secret, 12345, "JSON quotes"),
    (read.secret, True, "JSON quotes"),
    (read.secret, {"a": 1}, "not a mapping"),
    (read.secret, "", "is set but empty"),
    (read.secret, "s3cret\n", "has a line end"),
    (read.secret, b"bytes", "of type bytes"),
    (read.key_material, "", "is set but empty"),
    (read.key_material, b"", "is set but empty"),
    (read.key_material, 12345, "JSON quotes"),
    (read.key_material, "\ud800", "half a character"),
    (read.path, "/there/is/none", "there is no file '/there/is/none'"),
    (read.name, "my-api", "digits and underscores only"),
    (read.name, "café", "digits and underscores only"),
    (read.choice("a", "b"), "c", "one of a, b"),
    (read.choice("a", "b"), ["a"], "one of a, b"),
    (read.scope, "", "is set but empty"),
    (read.scope, 'open"id', "is no scope"),
    (read.scope, ["a b"], "is no scope"),
    (read.scope, [1], "not int"),
    (read.listed(read.text), ["a", ""], "is set but empty"),
    (read.boolean, "False", "true or false, in lower case and without quotes"),
    (read.boolean, "True", "not a text"),
    (read.boolean, "0", "not a text"),
    (read.boolean, 0, "not a number"),
    (read.boolean, 1, "not a number"),
    (read.seconds, 0, "above 0"),
    (read.seconds, -1, "0 or more"),
    (read.seconds, "60", "write no quotes"),
    (read.seconds, True, "not a bool"),
    (read.seconds, math.inf, "number of seconds"),
    (read.seconds, math.nan, "number of seconds"),
    (read.seconds_or_zero, -0.1, "0 or more"),
    (read.whole, 0, "above 0"),
    (read.whole, 1.0, "whole number"),
    (read.whole, True, "whole number"),
    (read.whole, "8", "without quotes"),
    (read.mapping(read.text), "a=b", "has to be a mapping"),
    (read.mapping(read.text), {"a": ["b"]}, "['a'] has to be a text"),
    (own.authorize_params, {"state": "1"}, "state: set by flask-atm itself"),
    (own.authorize_params, {"STATE": "1"}, "state: set by flask-atm itself"),
    (read.url, "idp.example", "https://host/"),
    (read.url, "ftp://idp.example", "https://host/"),
    (read.url, "file:///etc/passwd", "https://host/"),
    (read.url, "https://", "https://host/"),
    (read.url, "https:///path", "https://host/"),
    (read.url, "https://idp.example:port", "https://host/"),
    (read.url, "https://idp.example:99999", "https://host/"),
    (read.url, "https://idp.example:0", "https://host/"),
    (read.url, "https://[::1", "https://host/"),
    (read.url, "https://-x.example", "https://host/"),
    (read.url, "https://a%2eexample", "https://host/"),
    (read.url, "https://user:pw@idp.example", "user name or password"),
    (read.url, "https://@idp.example", "user name or password"),
    (read.url, "https://idp.example#x", "fragment"),
    (read.url, "https://idp.example#", "fragment"),
    (read.url, "https://idp.example/a b", "xn--"),
    (read.url, "https://idp.example\\@evil.example", "xn--"),
    (read.url, "https://bücher.example", "xn--"),
    (own.issuer, "https://idp.example?x=1", "query"),
    (own.issuer, "https://idp.example?", "query"),
    (read.uri, "orders", "absolute URI"),
    (read.uri, "api://orders#x", "absolute URI"),
    (read.uri, "api://or ders", "absolute URI"),
    (own.base_url, "https://api.example?x", "no query"),
    (own.base_url, "https://api.example/a/../b", "no . or .."),
    (own.base_url, "https://api.example/a/%2e%2E/b", "no . or .."),
    (read.origin, "https://api.example/v1", "without a path"),
    (read.origin, "https://api.example?x", "without a path"),
    (read.origin, "*", "https://host/"),
    (read.host, "http://keycloak", "host name alone"),
    (read.host, "keycloak:8080", "host name alone"),
    (read.host, "keycloak/x", "host name alone"),
    (read.host, "*", "host name alone"),
]


@pytest.mark.parametrize(("reader", "value", "result"), TAKEN)
def test_value_is_taken(reader: Any, value: object, result: object) -> None:
    assert reader(value) == result


@pytest.mark.parametrize(("reader", "value", "why"), REFUSED)
def test_value_is_refused_with_the_cure(reader: Any, value: object, why: str) -> None:
    with pytest.raises(Invalid) as caught:
        reader(value)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("reader", "value"),
    [
        (read.secret, 987654321),
        (read.secret, ["hunter22"]),
        (read.secret, "hunter22\n"),
        (read.key_material, "hunter22\ud800"),
        (read.url, "https://user:hunter22@idp.example"),
        (read.url, "nonsense:hunter22"),
        (read.mapping(read.text), {"key": "hunter22\n"}),
    ],
)
def test_what_may_be_secret_is_never_repeated(reader: Any, value: object) -> None:
    with pytest.raises(Invalid) as caught:
        reader(value)
    assert "hunter22" not in str(caught.value)
    assert "987654321" not in str(caught.value)


def test_path_may_be_a_path_object(tmp_path: Path) -> None:
    assert read.path(tmp_path) == str(tmp_path)


def test_key_material_gives_its_bytes_back() -> None:
    raw = bytes(range(256))
    assert read.key_material(raw).reveal().encode("utf-8", "surrogateescape") == raw


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("0.0.0.0", False),  # noqa: S104 -- no address that anything is bound to
        ("10.0.0.1", False),
        ("", False),
    ],
)
def test_loopback(host: str, here: bool) -> None:
    assert read.is_loopback(host) is here
