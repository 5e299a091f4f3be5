"""The configuration: every key, every rule between keys, every problem at once."""

import dataclasses
import json
import logging
import pickle
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flask_atm.config import (
    KEYS,
    APIConfig,
    ClientConfig,
    Config,
    ProviderConfig,
    client_from,
    provider_from,
)
from flask_atm.config.ring import weakness
from flask_atm.config.values import NOT_YET
from flask_atm.errors import ConfigurationError
from flask_atm.tokens import FrozenDict, Secret

KEY = "8f42a73054b1749f8f58848be5e6502c8a39cd6d2b1f4e3d90b7ae61"
OTHER = "1d7c0b9e4f3a2856c7d8e9fa0b1c2d3e4f5a6b7c8d9e0f1a2b3c4d5e"

SIGN_IN: dict[str, object] = {
    "SECRET_KEY": KEY,
    "ATM_ISSUER": "https://idp.example/realms/one",
    "ATM_CLIENT_ID": "app",
    "ATM_CLIENT_SECRET": "s3cret-canary",
}
CLIENT: dict[str, object] = {
    "client_id": "job",
    "client_secret": "s3cret-canary",
    "token_endpoint": "https://idp.example/token",
}


def load(values: Mapping[str, object], **options: bool) -> Config:
    return Config.load(values, **{"debug": False, "testing": False, **options})


def problems(values: Mapping[str, object], **options: bool) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        load(values, **options)
    return caught.value.problems


def the_problem(values: Mapping[str, object], **options: bool) -> str:
    (only,) = problems(values, **options)
    return only


def reveal(secret: Secret | Callable[[], str] | None) -> str:
    assert isinstance(secret, Secret)
    return secret.reveal()


# -- what a sign-in needs


def test_four_keys_are_enough() -> None:
    config = load(SIGN_IN)
    provider = config.providers["oidc"]
    assert config.default_provider == "oidc"
    assert config.store == "sqlite"
    assert provider.name == "oidc"
    assert provider.issuer == "https://idp.example/realms/one"
    assert provider.client_id == "app"
    assert reveal(provider.client_secret) == "s3cret-canary"
    assert provider.client_auth == "client_secret_basic"
    assert provider.scope == ("openid", "profile", "email")
    assert provider.sign_in
    assert config.ring_secrets == (KEY.encode(),)


def test_defaults_are_those_of_the_table() -> None:
    config = load(SIGN_IN)
    assert (config.user_token_leeway, config.client_token_leeway) == (60, 60)
    assert config.client_token_local_lifetime == 60
    assert config.store_prefix == "flask_atm"
    assert config.grant_lifetime == 14 * 24 * 3600
    assert config.grant_idle_timeout is None
    assert (config.token_timeout, config.api_timeout) == (6, 10)
    assert (config.routes, config.url_prefix) == (True, "/oidc")
    assert (config.after_login, config.after_logout) == ("/", "/")
    assert config.external_url is None
    assert config.back_channel.max_concurrency == 8
    assert config.back_channel.proxies is None
    provider = config.providers["oidc"]
    assert (provider.offline_access, provider.par) == ("auto", "auto")
    assert (provider.dpop, provider.request_object, provider.userinfo) == (False, False, False)
    assert (provider.revoke_on_logout, provider.logout_at_provider) == (True, True)
    assert provider.id_token.clock_skew == 60
    assert "none" not in provider.id_token.algorithms
    assert not [name for name in provider.id_token.algorithms if name.startswith("HS")]


def test_client_without_secret_is_public() -> None:
    values = {**SIGN_IN}
    del values["ATM_CLIENT_SECRET"]
    assert load(values).providers["oidc"].client_auth == "none"


def test_a_secret_that_is_none_is_no_public_client() -> None:
    assert the_problem({**SIGN_IN, "ATM_CLIENT_SECRET": None}) == (
        "ATM_CLIENT_SECRET: missing: set it, or set ATM_CLIENT_AUTH to none"
    )
    values = {**SIGN_IN, "ATM_CLIENT_SECRET": None, "ATM_CLIENT_AUTH": "none"}
    assert load(values).providers["oidc"].client_auth == "none"


def test_a_secret_that_would_not_be_used_is_a_problem() -> None:
    assert the_problem({**SIGN_IN, "ATM_CLIENT_AUTH": "none"}) == (
        "ATM_CLIENT_SECRET: not used where ATM_CLIENT_AUTH is none: remove one of them"
    )


def test_none_is_not_set() -> None:
    assert load({**SIGN_IN, "ATM_EXTERNAL_URL": None, "ATM_ROUTES": None}).routes is True
    assert load({"ATM_ISSUER": None, "ATM_CLIENT_ID": None}).providers == {}


SETTINGS: list[tuple[str, object, object]] = [
    ("ATM_AFTER_LOGIN", "/home?tab=1", "/home?tab=1"),
    ("ATM_AFTER_LOGIN", "blog.index", "blog.index"),
    ("ATM_AFTER_LOGOUT", "index", "index"),
    ("ATM_API_TIMEOUT", 2.5, 2.5),
    ("ATM_EXTERNAL_URL", "https://app.example/base/", "https://app.example/base"),
    ("ATM_EXTERNAL_URL", "http://localhost:5000", "http://localhost:5000"),
    ("ATM_GRANT_LIFETIME", 3600, 3600.0),
    ("ATM_ROUTES", False, False),
    ("ATM_STORE", "memory", "memory"),
    ("ATM_STORE", "sqlite:////var/lib/app/atm.db", "sqlite:////var/lib/app/atm.db"),
    ("ATM_STORE_PREFIX", "app.atm", "app.atm"),
    ("ATM_URL_PREFIX", "/auth/", "/auth"),
    ("ATM_URL_PREFIX", "/", "/"),
]


@pytest.mark.parametrize(("key", "value", "result"), SETTINGS)
def test_key_of_the_application_is_taken(key: str, value: object, result: object) -> None:
    assert getattr(load({**SIGN_IN, key: value}), key.removeprefix("ATM_").lower()) == result


FLAT: list[tuple[str, object, object]] = [
    ("ATM_AUDIENCE", "https://api.example", "https://api.example"),
    ("ATM_AUTHORIZE_PARAMS", {"prompt": "consent"}, {"prompt": "consent"}),
    ("ATM_CLIENT_AUTH", "client_secret_post", "client_secret_post"),
    ("ATM_CLIENT_ID", 4711, "4711"),
    ("ATM_CLIENT_TOKEN_RESOURCE", "api://a", ("api://a",)),
    ("ATM_CLIENT_TOKEN_SCOPE", "jobs", ("jobs",)),
    ("ATM_DPOP", False, False),
    ("ATM_JWKS_URI", "https://keys.example/jwks", "https://keys.example/jwks"),
    ("ATM_LOGOUT_AT_PROVIDER", False, False),
    ("ATM_METADATA_URL", "https://idp.example/meta?p=1", "https://idp.example/meta?p=1"),
    ("ATM_OFFLINE_ACCESS", False, False),
    ("ATM_OFFLINE_ACCESS", "auto", "auto"),
    ("ATM_PAR", "auto", "auto"),
    ("ATM_PAR", False, False),
    ("ATM_REQUEST_OBJECT", False, False),
    ("ATM_RESOURCE", ["api://a", "api://b"], ("api://a", "api://b")),
    ("ATM_REVOKE_ON_LOGOUT", False, False),
    ("ATM_SCOPE", "openid email", ("openid", "email")),
    ("ATM_SCOPE", ["openid"], ("openid",)),
    ("ATM_TOKEN_PARAMS", {"tenant": 7}, {"tenant": "7"}),
    ("ATM_USERINFO", True, True),
]


@pytest.mark.parametrize(("key", "value", "result"), FLAT)
def test_key_of_a_provider_is_taken_flat_and_nested(
    key: str, value: object, result: object
) -> None:
    name = key.removeprefix("ATM_").lower()
    assert getattr(load({**SIGN_IN, key: value}).providers["oidc"], name) == result
    nested = {k.removeprefix("ATM_").lower(): v for k, v in SIGN_IN.items() if k != "SECRET_KEY"}
    values = {"SECRET_KEY": KEY, "ATM_PROVIDERS": {"One": {**nested, name: value}}}
    assert getattr(load(values).providers["one"], name) == result


REFUSED: list[tuple[str, object, str]] = [
    ("ATM_AFTER_LOGIN", "https://evil.example/", "a path of this application"),
    ("ATM_AFTER_LOGIN", "//evil.example", "a path of this application"),
    ("ATM_AFTER_LOGIN", "/\\evil.example", "a path of this application"),
    ("ATM_AFTER_LOGOUT", "", "is set but empty"),
    ("ATM_API_TIMEOUT", "10", "write no quotes"),
    ("ATM_APIS", ["invoices"], "has to be a mapping"),
    ("ATM_AUTHORIZE_PARAMS", {"STATE": "x"}, "state: set by flask-atm itself"),
    ("ATM_AUTHORIZE_PARAMS", "prompt=login", "has to be a mapping"),
    ("ATM_CLIENT_AUTH", "basic", "has to be one of client_secret_basic"),
    ("ATM_CLIENT_ID", "", "is set but empty"),
    ("ATM_CLIENT_ID", True, "has to be a text"),
    ("ATM_CLIENT_SECRET", "", "is set but empty"),
    ("ATM_CLIENT_SECRET", 12345, "JSON quotes"),
    ("ATM_CLIENT_SECRET", True, "_FILE"),
    ("ATM_CLIENTS", "job", "has to be a mapping"),
    ("ATM_DEFAULT_PROVIDER", "github", "there is no 'github'; there are oidc"),
    ("ATM_DPOP", "True", "has to be True or False"),
    ("ATM_EXTERNAL_URL", "http://app.example", "plain http"),
    ("ATM_EXTERNAL_URL", "https://app.example?x", "must not have a query"),
    ("ATM_GRANT_LIFETIME", 0, "above 0"),
    ("ATM_ID_TOKEN", {"algorithms": ["none"]}, "has to be one of RS256"),
    ("ATM_ID_TOKEN", {"algorithms": "HS256"}, "has to be one of RS256"),
    ("ATM_ID_TOKEN", {"algorithms": []}, "is set but empty"),
    ("ATM_ID_TOKEN", {"clock_skew": -1}, "0 or more"),
    ("ATM_ID_TOKEN", {"skew": 1}, "there is no such key"),
    ("ATM_ISSUER", "http://idp.example", "plain http: use https, or name the host"),
    ("ATM_ISSUER", "https://idp.example?x=1", "must not have a query"),
    ("ATM_ISSUER", "https://idp.example/#x", "fragment"),
    ("ATM_ISSUER", "https://u:p@idp.example", "user name"),
    ("ATM_ISSUER", "https://login.microsoftonline.com/common/v2.0", "one provider per tenant"),
    ("ATM_ISSUER", "https://login.microsoftonline.com/organizations/v2.0", "per tenant"),
    ("ATM_ISSUER", "https://login.microsoftonline.com/consumers", "one provider per tenant"),
    ("ATM_ISSUER", "https://login.microsoftonline.com/{tenantid}/v2.0", "per tenant"),
    ("ATM_METADATA_URL", "https://login.microsoftonline.com/common/v2.0/m", "per tenant"),
    ("ATM_OFFLINE_ACCESS", "yes", "has to be True or False"),
    ("ATM_PROVIDERS", {"my-idp": {}}, "letters a-z"),
    ("ATM_RESOURCE", ["orders"], "absolute URI"),
    ("ATM_REVOCATION_ENDPOINT", "http://idp.example/revoke", "plain http"),
    ("ATM_ROUTES", "False", "has to be True or False"),
    ("ATM_ROUTES", 0, "in the environment: true or false"),
    ("ATM_SCOPE", "", "is set but empty"),
    ("ATM_SCOPE", "email", "a sign-in needs openid"),
    ("ATM_STORE", "sqlite://", "sqlite:///path"),
    ("ATM_STORE", "sqlite:///:memory:", "or memory"),
    ("ATM_STORE", "mongodb://h", "redis://host, postgresql://host/database, or memory"),
    ("ATM_STORE", object(), "ATM(store=…)"),
    ("ATM_STORE_PREFIX", "a b", "letters, digits"),
    ("ATM_TOKEN_ENDPOINT", "file:///token", "has to be a URL"),
    ("ATM_TOKEN_PARAMS", {"client_secret": "x"}, "client_secret: set by flask-atm itself"),
    ("ATM_TOKEN_TIMEOUT", True, "number of seconds"),
    ("ATM_URL_PREFIX", "oidc", "has to be a path"),
    ("ATM_URL_PREFIX", "/<x>", "has to be a path"),
]


@pytest.mark.parametrize(("key", "value", "why"), REFUSED)
def test_key_is_refused_by_name_and_with_the_cure(key: str, value: object, why: str) -> None:
    problem = the_problem({**SIGN_IN, key: value})
    assert why in problem
    assert problem.startswith((f"{key}: ", f"{key}["))


def test_all_problems_come_at_once() -> None:
    found = problems(
        {
            "ATM_ISUER": "https://idp.example",
            "ATM_CLIENT_SECRET": 12345,
            "ATM_ROUTES": "False",
            "ATM_APIS": {"invoices": {"base_ur": "https://api.example"}},
        }
    )
    assert [problem.split(": ", 1)[0] for problem in found] == [
        "ATM_ISUER",
        "ATM_ROUTES",
        "ATM_CLIENT_SECRET",
        "ATM_CLIENT_ID",
        "ATM_ISSUER",
        "ATM_APIS['invoices']['base_ur']",
        "ATM_APIS['invoices']['base_url']",
        "SECRET_KEY",
    ]


def test_unknown_key_is_refused_with_a_guess() -> None:
    assert the_problem({**SIGN_IN, "ATM_CLIENTID": "x"}) == (
        "ATM_CLIENTID: there is no such key, did you mean ATM_CLIENT_ID?"
    )
    assert the_problem({**SIGN_IN, "ATM_QQQQ": "x"}) == "ATM_QQQQ: there is no such key"
    assert the_problem({**SIGN_IN, "ATM_BACK_CHANNEL": {"proxy": {}}}) == (
        "ATM_BACK_CHANNEL['proxy']: there is no such key, did you mean ATM_BACK_CHANNEL['proxies']?"
    )


@pytest.mark.parametrize(
    "key",
    [
        "ATM_SERVICE_HOST",
        "ATM_SERVICE_PORT",
        "ATM_SERVICE_PORT_HTTP",
        "ATM_PORT",
        "ATM_PORT_5000_TCP",
        "ATM_PORT_5000_TCP_ADDR",
        "ATM_PORT_5000_UDP_PROTO",
        "ATM_CANARY_SERVICE_HOST",
        "ATM_CANARY_PORT_80_TCP_PORT",
    ],
)
def test_names_made_by_kubernetes_are_skipped(key: str) -> None:
    assert load({**SIGN_IN, key: "tcp://10.0.0.1:5000"}) == load(SIGN_IN)


def test_names_like_those_of_kubernetes_are_not_skipped() -> None:
    assert "ATM_PORTS" in the_problem({**SIGN_IN, "ATM_PORTS": 1})


def test_keys_of_others_are_none_of_ours() -> None:
    assert load({**SIGN_IN, "ATMOSPHERE": 1, "OIDC_ISSUER": "x"}) == load(SIGN_IN)


# -- not built yet


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ATM_DPOP", True),
        ("ATM_DPOP_KEY", {"kty": "EC", "d": "s3cret-canary"}),
        ("ATM_PAR", True),
        ("ATM_REQUEST_OBJECT", True),
        ("ATM_CLIENT_AUTH", "private_key_jwt"),
        ("ATM_CLIENT_AUTH", "client_secret_jwt"),
        ("ATM_CLIENT_AUTH", "tls_client_auth"),
        ("ATM_CLIENT_AUTH", "self_signed_tls_client_auth"),
        ("ATM_CLIENT_KEY", "-----BEGIN s3cret-canary"),
        ("ATM_CLIENT_TLS_CERT", "/cert.pem"),
        ("ATM_CLIENT_TLS_KEY", "/key.pem"),
        ("ATM_CLIENT_ASSERTION_AUDIENCE", "token_endpoint"),
        ("ATM_CACHE", {"CACHE_TYPE": "RedisCache"}),
    ],
)
def test_what_is_not_built_yet_is_refused(key: str, value: object) -> None:
    problem = the_problem({**SIGN_IN, key: value})
    assert problem.startswith(f"{key}: ")
    assert problem.endswith("not available in this version of flask-atm")
    assert "s3cret-canary" not in problem


def test_token_exchange_is_refused_and_nested_keys_too() -> None:
    api = {"base_url": "https://api.example", "token": "exchange"}
    assert the_problem({**SIGN_IN, "ATM_APIS": {"a": api}}) == (
        "ATM_APIS['a']['token']: exchange is not available in this version of flask-atm"
    )
    with_client = {**api, "client": "job"}
    values = {**SIGN_IN, "ATM_CLIENTS": {"job": CLIENT}, "ATM_APIS": {"a": with_client}}
    assert "exchange is not available" in the_problem(values)
    assert the_problem({"ATM_CLIENTS": {"a": {**CLIENT, "DPOP": True}}}) == (
        "ATM_CLIENTS['a']['dpop']: not available in this version of flask-atm"
    )


def test_the_list_of_what_is_not_built_yet_names_keys_that_exist() -> None:
    names = {key.name.removeprefix("ATM_").lower() for key in KEYS}
    names |= {field.name for field in dataclasses.fields(APIConfig)}
    assert {low for low, _ in NOT_YET} <= names


# -- providers


def test_several_providers_and_the_default() -> None:
    github = {
        "authorization_endpoint": "https://github.example/authorize",
        "token_endpoint": "https://github.example/token",
        "client_id": "gh",
        "client_secret": "x",
        "sign_in": False,
    }
    config = load({**SIGN_IN, "ATM_PROVIDERS": {"GitHub": github}})
    assert config.providers.keys() == {"oidc", "github"}
    assert config.default_provider == "oidc"
    assert config.providers["github"].scope == ()
    assert config.providers["github"].endpoints == {
        "authorization_endpoint": "https://github.example/authorize",
        "token_endpoint": "https://github.example/token",
    }
    only = {"SECRET_KEY": KEY, "ATM_PROVIDERS": {"github": github}}
    assert load(only).default_provider == "github"
    two = {"SECRET_KEY": KEY, "ATM_PROVIDERS": {"a": github, "b": github}}
    assert load(two).default_provider is None
    assert load({**two, "ATM_DEFAULT_PROVIDER": "B"}).default_provider == "b"


def test_a_provider_called_oidc_in_both_places_is_a_problem() -> None:
    nested = {"issuer": "https://idp.example", "client_id": "app"}
    problem = the_problem({**SIGN_IN, "ATM_PROVIDERS": {"oidc": nested}})
    assert problem.startswith("ATM_PROVIDERS['oidc']: the flat keys (ATM_ISSUER) configure it")
    alone = {"SECRET_KEY": KEY, "ATM_PROVIDERS": {"oidc": nested}}
    assert load(alone).default_provider == "oidc"


def test_a_flat_key_without_flat_provider_is_a_problem() -> None:
    nested = {"issuer": "https://idp.example", "client_id": "app"}
    values = {"SECRET_KEY": KEY, "ATM_PROVIDERS": {"one": nested}, "ATM_SCOPE": "openid"}
    assert the_problem(values).startswith("ATM_SCOPE: a key of one provider: write 'scope' into")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"client_id": None}, "['client_id']: missing"),
        ({"issuer": None}, "['issuer']: missing: ID tokens (scope openid)"),
        (
            {"issuer": None, "sign_in": False},
            "['issuer']: missing: set it, or ATM_PROVIDERS['one']['authorization_endpoint'] and",
        ),
        (
            {"issuer": None, "sign_in": False, "metadata_url": "https://idp.example/m"},
            "['issuer']: missing: the metadata",
        ),
        ({"client_auth": "client_secret_post"}, "['client_secret']: missing: client_secret_post"),
        ({"client_idd": "x"}, "did you mean ATM_PROVIDERS['one']['client_id']?"),
        ({"CLIENT_ID": "other"}, "['client_id']: given twice"),
        ({"scope": "orders"}, "set ATM_PROVIDERS['one']['sign_in'] to False"),
    ],
)
def test_what_a_provider_needs(changes: dict[str, object], expected: str) -> None:
    provider = {"issuer": "https://idp.example", "client_id": "app", **changes}
    assert expected in the_problem({"SECRET_KEY": KEY, "ATM_PROVIDERS": {"one": provider}})


def test_a_connected_account_needs_neither_issuer_nor_openid() -> None:
    account = {
        "authorization_endpoint": "https://github.example/authorize",
        "token_endpoint": "https://github.example/token",
        "client_id": "gh",
        "sign_in": False,
        "userinfo": True,
    }
    values = {"SECRET_KEY": KEY, "ATM_PROVIDERS": {"github": account}}
    assert "['userinfo_endpoint']: missing" in the_problem(values)
    account["userinfo_endpoint"] = "https://github.example/user"
    assert load(values).providers["github"].userinfo


def test_problems_of_a_provider_are_named_in_full() -> None:
    values = {"SECRET_KEY": KEY, "ATM_PROVIDERS": {"GITHUB": {"CLIENT_SECRET": True}}}
    assert {problem.split(": ")[0] for problem in problems(values)} == {
        "ATM_PROVIDERS['github']['client_secret']",
        "ATM_PROVIDERS['github']['client_id']",
        "ATM_PROVIDERS['github']['issuer']",
    }


def test_id_token_rules_are_read() -> None:
    rules = load({**SIGN_IN, "ATM_ID_TOKEN": {"ALGORITHMS": "ES256", "clock_skew": 0}})
    assert rules.providers["oidc"].id_token.algorithms == ("ES256",)
    assert rules.providers["oidc"].id_token.clock_skew == 0


# -- clients


def test_clients_only_need_no_secret_key_and_no_store() -> None:
    config = load({"ATM_CLIENTS": {"Job": {**CLIENT, "scope": "a b", "audience": "x"}}})
    job = config.clients["job"]
    assert (job.name, job.client_id, job.client_auth) == ("job", "job", "client_secret_basic")
    assert (job.scope, job.audience, job.provider) == (("a", "b"), "x", None)
    assert config.store == "memory"
    assert config.ring_secrets == ()
    assert config.default_provider is None
    assert load({"ATM_CLIENTS": {"job": CLIENT}, "SECRET_KEY": "dev"}).ring_secrets == ()


def test_client_of_a_provider_uses_its_registration() -> None:
    values = {**SIGN_IN, "ATM_TOKEN_ENDPOINT": "https://inside.example/token"}
    job = load({**values, "ATM_CLIENTS": {"job": {"provider": "OIDC"}}}).clients["job"]
    assert (job.provider, job.client_id) == ("oidc", "app")
    assert reveal(job.client_secret) == "s3cret-canary"
    assert job.issuer == "https://idp.example/realms/one"
    assert job.token_endpoint == "https://inside.example/token"
    assert job.scope == ()
    assert not job.needs_provider


def test_client_of_a_provider_may_have_its_own_registration() -> None:
    own = {
        "provider": "oidc",
        "client_id": "job",
        "client_secret": "own",
        "client_auth": "client_secret_post",
    }
    job = load({**SIGN_IN, "ATM_CLIENTS": {"job": own}}).clients["job"]
    assert (job.client_id, job.client_auth) == ("job", "client_secret_post")
    assert reveal(job.client_secret) == "own"
    assert job.issuer == "https://idp.example/realms/one"


def test_client_of_a_provider_from_a_loader_is_completed_later() -> None:
    config = load(
        {"SECRET_KEY": KEY, "ATM_CLIENTS": {"job": {"provider": "later"}}},
        has_provider_loader=True,
    )
    job = config.clients["job"]
    assert job.needs_provider
    later = provider_from("later", {"issuer": "https://late.example", "client_id": "l"}, config)
    completed = job.at(later)
    assert (completed.issuer, completed.client_id) == ("https://late.example", "l")
    assert not completed.needs_provider


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ({**CLIENT, "token_endpoint": None}, "['token_endpoint']: missing: set it, or issuer"),
        ({**CLIENT, "client_id": None}, "['client_id']: missing"),
        (
            {**CLIENT, "client_secret": None},
            "['client_secret']: missing: set it, or set ATM_CLIENTS",
        ),
        ({**CLIENT, "token_endpoint": "http://idp.example/token"}, "plain http"),
        ({**CLIENT, "provider": "oidc"}, "['token_endpoint']: the provider has it: remove one"),
        ({**CLIENT, "metadata_url": "https://idp.example/m"}, "['issuer']: missing"),
        ({**CLIENT, "sign_in": True}, "['sign_in']: there is no such key"),
        ({"provider": "oidc", "client_secret": "x"}, "['client_id']: missing: set it, or remove"),
        ({"provider": "other"}, "['provider']: there is no 'other'; there are oidc"),
        ("client", "ATM_CLIENTS['job']: has to be a mapping"),
    ],
)
def test_what_a_client_needs(client: object, expected: str) -> None:
    found = problems({**SIGN_IN, "ATM_CLIENTS": {"job": client}})
    assert expected in found[0]


def test_client_may_authenticate_by_assertions_alone() -> None:
    client = {"client_id": "job", "client_auth": "none", "issuer": "https://idp.example"}
    assert load({"ATM_CLIENTS": {"job": client}}).clients["job"].client_auth == "none"


def test_client_may_have_an_issuer_and_an_endpoint_that_wins() -> None:
    client = {**CLIENT, "issuer": "https://idp.example"}
    job = load({"ATM_CLIENTS": {"job": client}}).clients["job"]
    assert job.endpoints == {"token_endpoint": "https://idp.example/token"}


# -- APIs


def test_api_is_read() -> None:
    api = {
        "base_url": "https://api.example/v1",
        "scope": "orders",
        "resource": "api://orders",
        "allowed_origins": "https://CDN.example:443/",
        "timeout": 3,
        "headers": {"X-Key": "s3cret-canary"},
        "pool_size": 4,
        "renew_on_401": False,
        "token_params": {"TENANT": "x"},
    }
    orders = load({**SIGN_IN, "ATM_APIS": {"ORDERS": api}}).apis["orders"]
    assert orders == APIConfig(
        name="orders",
        base_url="https://api.example/v1/",
        scope=("orders",),
        resource=("api://orders",),
        allowed_origins=("https://cdn.example",),
        timeout=3.0,
        headers=FrozenDict({"X-Key": "s3cret-canary"}),
        pool_size=4,
        renew_on_401=False,
        token_params=FrozenDict(tenant="x"),
    )
    assert (orders.token, orders.client, orders.provider) == ("user", None, None)
    assert "s3cret-canary" not in repr(orders)


@pytest.mark.parametrize(
    ("api", "expected"),
    [
        ({"base_url": None}, "['base_url']: missing"),
        ({"base_url": "http://api.example"}, "['base_url']: plain http"),
        ({"base_url": "https://api.example?x"}, "['base_url']: has no query"),
        ({"token": "mine"}, "['token']: has to be one of user, client"),
        ({"client": "job"}, "['token']: missing: write \"client\""),
        ({"client": "job", "token": "user"}, "['client']: not used with"),
        (
            {"client": "nobody", "token": "client"},
            "['client']: there is no 'nobody'; there are job",
        ),
        ({"client": "job", "token": "client", "provider": "oidc"}, "['provider']: not used beside"),
        ({"provider": "other"}, "['provider']: there is no 'other'; there are oidc"),
        ({"headers": {"authorization": "x"}}, "authorization is set by flask-atm itself"),
        ({"headers": {"DPoP": "x"}}, "DPoP is set by flask-atm itself"),
        ({"headers": {"Cookie": "x"}}, "Cookie is set by flask-atm itself"),
        ({"headers": {"Host": "x"}}, "Host is set by flask-atm itself"),
        ({"headers": {"X-A": "a\r\nX-B: b"}}, "['X-A'] has a space or line end"),
        ({"headers": {"X A": "a"}}, "is no name of a header"),
        ({"headers": {"X-A": "a\x85b"}}, "has a character that no header has"),
        ({"allowed_origins": ["https://api.example/path"]}, "['allowed_origins']: has to be an"),
        ({"timeout": 0}, "['timeout']: has to be a number of seconds above 0"),
        ({"pool_size": 0}, "['pool_size']: has to be a whole number"),
        ({"ca_bundle": "/no/such.pem"}, "['ca_bundle']: there is no file"),
        ({"renew_on_401": "no"}, "['renew_on_401']: has to be True or False"),
        ({"token_params": {"grant_type": "x"}}, "grant_type: set by flask-atm itself"),
    ],
)
def test_what_an_api_needs(api: dict[str, object], expected: str) -> None:
    api = {"base_url": "https://api.example", **api}
    values = {**SIGN_IN, "ATM_CLIENTS": {"job": CLIENT}, "ATM_APIS": {"orders": api}}
    assert expected in the_problem(values)


@pytest.mark.parametrize(
    ("base_url", "origins"),
    [
        ("http://localhost:8080/v1", []),
        ("http://127.0.0.1", []),
        ("http://[::1]:5000", []),
        ("http://api.example:80/v1", ["http://api.example"]),
    ],
)
def test_plain_http_to_an_api_is_for_loopback_and_named_origins(
    base_url: str, origins: list[str]
) -> None:
    api = {"base_url": base_url, "allowed_origins": origins}
    assert load({**SIGN_IN, "ATM_APIS": {"a": api}}).apis["a"].base_url == f"{base_url}/"


def test_api_needs_somebody_to_get_a_token_from() -> None:
    api = {"base_url": "https://api.example"}
    values = {"ATM_CLIENTS": {"job": CLIENT}, "ATM_APIS": {"a": api}}
    assert 'set token to "client" and name a client' in the_problem(values)
    with_client = {**values, "ATM_APIS": {"a": {**api, "token": "client"}}}
    assert "there is no provider to get it from: set client" in the_problem(with_client)
    named = {**values, "ATM_APIS": {"a": {**api, "token": "client", "client": "JOB"}}}
    assert load(named).apis["a"].client == "job"


# -- loaders and own stores


def test_loaders_may_know_what_is_not_configured() -> None:
    values = {
        "SECRET_KEY": KEY,
        "ATM_DEFAULT_PROVIDER": "tenant1",
        "ATM_CLIENTS": {"job": {"provider": "tenant2"}},
        "ATM_APIS": {
            "a": {"base_url": "https://api.example", "provider": "tenant3"},
            "b": {"base_url": "https://api.example", "token": "client", "client": "later"},
        },
    }
    config = load(values, has_provider_loader=True, has_client_loader=True)
    assert config.default_provider == "tenant1"
    assert config.store == "sqlite"
    assert len(problems(values)) == 4


def test_loaded_settings_follow_the_same_rules() -> None:
    config = load({**SIGN_IN, "ATM_BACK_CHANNEL": {"allowed_http_hosts": ["keycloak"]}})
    found = provider_from("tenant1", {"ISSUER": "http://keycloak/realms/x", "client_id": 7}, config)
    assert found == ProviderConfig(
        name="tenant1",
        issuer="http://keycloak/realms/x",
        client_id="7",
        scope=("openid", "profile", "email"),
    )
    client = client_from("job", {"provider": "oidc", "scope": "x"}, config)
    assert (client.client_id, client.scope) == ("app", ("x",))
    assert client_from("job", {"provider": "unknown_here"}, config).needs_provider


@pytest.mark.parametrize(
    ("read", "settings", "expected"),
    [
        (provider_from, {"isuer": "https://x.example"}, "provider_loader('t')['isuer']: there is"),
        (provider_from, {"client_secret": 12345}, "provider_loader('t')['client_secret']: has to"),
        (provider_from, "text", "provider_loader('t'): has to be a mapping"),
        (client_from, {"client_id": "x"}, "client_loader('t')['token_endpoint']: missing"),
        (client_from, {**CLIENT, "dpop": True}, "client_loader('t')['dpop']: not available"),
    ],
)
def test_loaded_settings_are_refused_with_the_name_of_the_loader(
    read: Callable[..., object], settings: Any, expected: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read("t", settings, load(SIGN_IN))
    assert [problem for problem in caught.value.problems if problem.startswith(expected)]


def test_own_store_and_store_on_disk_need_keys() -> None:
    values = {"ATM_CLIENTS": {"job": CLIENT}}
    assert "SECRET_KEY: missing, and the store is sealed" in the_problem(values, has_store=True)
    assert "SECRET_KEY: missing" in the_problem({**values, "ATM_STORE": "sqlite"})
    sealed = load({**values, "ATM_STORE": "sqlite", "ATM_ENCRYPTION_KEYS": [KEY]})
    assert sealed.ring_secrets == (KEY.encode(),)


# -- keys


def test_ring_is_derived_from_flask_or_given() -> None:
    derived = load({**SIGN_IN, "SECRET_KEY_FALLBACKS": [OTHER, b"\xff" + bytes(range(40))]})
    assert derived.ring_secrets == (KEY.encode(), OTHER.encode(), b"\xff" + bytes(range(40)))
    given = load({**SIGN_IN, "ATM_ENCRYPTION_KEYS": [OTHER, KEY]})
    assert given.ring_secrets == (OTHER.encode(), KEY.encode())
    one = load({**SIGN_IN, "ATM_ENCRYPTION_KEYS": OTHER})
    assert one.ring_secrets == (OTHER.encode(),)


WEAK: list[tuple[object, str]] = [
    ("dev", "is shorter than 32 bytes"),
    (b'_5#y2L"F4Q8z\n\xec]/', "is shorter than 32 bytes"),
    ("x" * 64, "repeats itself"),
    ("changeme" * 8, "repeats itself"),
    ("ab" * 31 + "a", "repeats itself"),
    ("192b9bdd22ab9ed4d12e236c78afcb9a393ec15f71bbf5dc987d54727823bcbf", "well-known example"),
    (b"5f352379324c22463451387a0aec5d2f", "well-known example"),
    ("please-change-this-before-production-1234", "well-known example"),
    ("your-secret-key-goes-here-and-is-long-enough", "well-known example"),
    ("django-insecure-8f42a73054b1749f8f58848be5e6502c", "well-known example"),
]


@pytest.mark.parametrize(("key", "why"), WEAK)
def test_j4_weak_keys_are_refused_unless_debug_or_testing(key: object, why: str) -> None:
    problem = the_problem({**SIGN_IN, "SECRET_KEY": key})
    assert problem.startswith(f"SECRET_KEY: {why}" if "example" not in why else "SECRET_KEY: is a")
    assert "python -c 'import secrets; print(secrets.token_hex())'" in problem
    assert why in problem
    assert load({**SIGN_IN, "SECRET_KEY": key}, debug=True).ring_secrets
    assert load({**SIGN_IN, "SECRET_KEY": key}, testing=True).ring_secrets
    fallback = the_problem({**SIGN_IN, "SECRET_KEY_FALLBACKS": [OTHER, key]})
    assert fallback.startswith("SECRET_KEY_FALLBACKS: number 2 ")
    own = the_problem({**SIGN_IN, "ATM_ENCRYPTION_KEYS": [key]})
    assert own.startswith("ATM_ENCRYPTION_KEYS: ")


@pytest.mark.parametrize("key", [KEY, OTHER, "correct horse battery staple and then some"])
def test_j4_good_keys_are_taken(key: str) -> None:
    assert weakness(Secret(key)) is None


@pytest.mark.parametrize("options", [{}, {"debug": True}, {"testing": True}])
def test_j4_sign_ins_without_key_are_refused(options: dict[str, bool]) -> None:
    values = {**SIGN_IN, "SECRET_KEY": None}
    assert the_problem(values, **options) == (
        "SECRET_KEY: missing, and sign-ins need it; make one with"
        " python -c 'import secrets; print(secrets.token_hex())'"
    )
    assert "sign-ins need it" in the_problem({**values, "ATM_ENCRYPTION_KEYS": [KEY]}, **options)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"SECRET_KEY": 12345}, "SECRET_KEY: has to be a text, not a number"),
        ({"SECRET_KEY": ""}, "SECRET_KEY: is set but empty"),
        ({"SECRET_KEY_FALLBACKS": [None]}, "SECRET_KEY_FALLBACKS: has to be a text"),
        ({"ATM_ENCRYPTION_KEYS": 12345}, "ATM_ENCRYPTION_KEYS: has to be a text, not a number"),
        ({"ATM_ENCRYPTION_KEYS": []}, "ATM_ENCRYPTION_KEYS: is set but empty"),
        ({"ATM_ENCRYPTION_KEYS": ""}, "ATM_ENCRYPTION_KEYS: is set but empty"),
    ],
)
def test_keys_of_the_wrong_kind_are_refused(values: dict[str, object], expected: str) -> None:
    assert the_problem({**SIGN_IN, **values}).startswith(expected)


# -- files


def test_j8_secret_comes_from_text_file_or_callable(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("from-file \r\n")
    values = {**SIGN_IN, "ATM_CLIENT_SECRET": None, "ATM_CLIENT_SECRET_FILE": str(file)}
    provider = load(values).providers["oidc"]
    assert reveal(provider.client_secret) == "from-file "
    assert provider.client_auth == "client_secret_basic"
    nested = {**CLIENT, "client_secret": None, "CLIENT_SECRET_FILE": file}
    assert reveal(load({"ATM_CLIENTS": {"j": nested}}).clients["j"].client_secret) == "from-file "

    def vault() -> str:
        return "from-vault"

    assert load({**SIGN_IN, "ATM_CLIENT_SECRET": vault}).providers["oidc"].client_secret is vault


def test_encryption_keys_come_from_a_file_one_per_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{OTHER}\r\n\n{KEY}\n")
    config = load({**SIGN_IN, "ATM_ENCRYPTION_KEYS_FILE": str(file)})
    assert config.ring_secrets == (OTHER.encode(), KEY.encode())


@pytest.mark.parametrize("key", ["ATM_CLIENT_SECRET", "ATM_ENCRYPTION_KEYS"])
def test_file_that_cannot_be_used_is_named_with_the_cure(key: str, tmp_path: Path) -> None:
    values = {k: v for k, v in SIGN_IN.items() if k != key}

    def problem(path: object) -> str:
        return the_problem({**values, f"{key}_FILE": path})

    gone = tmp_path / "gone"
    assert f"{key}_FILE: cannot read '{gone}' (No such file or directory): mount" in problem(gone)
    assert "(Is a directory)" in problem(tmp_path)
    empty = tmp_path / "empty"
    empty.write_text("\n")
    assert f"{key}_FILE: '{empty}' is empty: write the secret into it" in problem(empty)
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    assert "is no UTF-8 text" in problem(binary)
    assert "has to be the path of a file" in problem(12345)
    assert "cannot read" in problem("a\x00b")
    good = tmp_path / "good"
    good.write_text(KEY)
    both = {**values, key: KEY, f"{key}_FILE": str(good)}
    assert the_problem(both) == f"{key}_FILE: {key} is set too: keep one of them"


# -- the environment


def test_from_prefixed_env(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {
        "FLASK_SECRET_KEY": KEY,
        "FLASK_ATM_ISSUER": "https://idp.example",
        "FLASK_ATM_CLIENT_ID": "12345",
        "FLASK_ATM_CLIENT_SECRET": '"12345"',
        "FLASK_ATM_OFFLINE_ACCESS": "true",
        "FLASK_ATM_GRANT_LIFETIME": "3600",
        "FLASK_ATM_AUTHORIZE_PARAMS__PROMPT": "login",
        "FLASK_ATM_BACK_CHANNEL__ALLOWED_HTTP_HOSTS": '["keycloak"]',
        "FLASK_ATM_PROVIDERS__GITHUB__CLIENT_ID": "gh",
        "FLASK_ATM_PROVIDERS__GITHUB__CLIENT_SECRET": "gh-secret",
        "FLASK_ATM_PROVIDERS__GITHUB__ISSUER": "http://keycloak:8080/realms/gh",
        "FLASK_ATM_PROVIDERS__GITHUB__SIGN_IN": "false",
        "FLASK_ATM_APIS": json.dumps({"invoices": {"base_url": "https://api.example"}}),
        "FLASK_ATM_ENCRYPTION_KEYS": json.dumps([OTHER]),
        "FLASK_ATM_SERVICE_HOST": "10.0.0.1",
        "FLASK_ATM_PORT_80_TCP": "tcp://10.0.0.1:80",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    app = Flask(__name__)
    # The file has one part, the environment the secrets: together they are one provider.
    app.config["ATM_PROVIDERS"] = {"github": {"scope": ["repo"]}}
    app.config.from_prefixed_env()
    config = load(app.config)
    flat, github = config.providers["oidc"], config.providers["github"]
    assert (flat.client_id, reveal(flat.client_secret)) == ("12345", "12345")
    assert flat.offline_access is True
    assert flat.authorize_params == {"prompt": "login"}
    assert (github.client_id, reveal(github.client_secret)) == ("gh", "gh-secret")
    assert (github.scope, github.sign_in) == (("repo",), False)
    assert config.apis["invoices"].base_url == "https://api.example/"
    assert config.grant_lifetime == 3600
    assert config.ring_secrets == (OTHER.encode(),)


def test_what_the_environment_makes_of_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_SECRET_KEY", KEY)
    monkeypatch.setenv("FLASK_ATM_ISSUER", "https://idp.example")
    monkeypatch.setenv("FLASK_ATM_CLIENT_ID", "app")
    monkeypatch.setenv("FLASK_ATM_CLIENT_SECRET", "987654321")
    monkeypatch.setenv("FLASK_ATM_USERINFO", "True")
    monkeypatch.setenv("FLASK_ATM_SCOPE", "")
    app = Flask(__name__)
    app.config.from_prefixed_env()
    found = problems(app.config)
    assert [problem.split(":")[0] for problem in found] == [
        "ATM_CLIENT_SECRET",
        "ATM_SCOPE",
        "ATM_USERINFO",
    ]
    assert """'"…"'""" in found[0]
    assert "987654321" not in "".join(found)


@pytest.mark.parametrize(
    "twice",
    [
        {"one": {"client_id": "a"}, "ONE": {"CLIENT_ID": "b"}},
        {"one": {"client_id": "a"}, "ONE": {"client_id": "b"}},
    ],
)
def test_the_same_key_twice_in_small_and_capital_letters_is_a_problem(
    twice: dict[str, object],
) -> None:
    found = problems({**SIGN_IN, "ATM_PROVIDERS": twice})
    assert "given twice" in found[0]


def test_same_name_twice_is_a_problem() -> None:
    api = {"base_url": "https://api.example"}
    assert "given twice" in problems({**SIGN_IN, "ATM_APIS": {"a": api, "A": "text"}})[0]


# -- plain http


def test_g16_plain_http_is_for_loopback_and_named_hosts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for issuer in ("http://localhost:8080/realms/x", "http://127.0.0.1:9", "http://[::1]:9"):
        assert load({**SIGN_IN, "ATM_ISSUER": issuer}).providers["oidc"].issuer == issuer
    assert not caplog.records
    values = {**SIGN_IN, "ATM_ISSUER": "http://Keycloak:8080/realms/x"}
    assert the_problem(values).startswith("ATM_ISSUER: plain http")
    values["ATM_BACK_CHANNEL"] = {"allowed_http_hosts": "keycloak"}
    values["ATM_EXTERNAL_URL"] = "http://app.example"
    assert the_problem(values).startswith("ATM_EXTERNAL_URL: plain http")
    values["ATM_BACK_CHANNEL"] = {"allowed_http_hosts": ["KEYCLOAK", "app.example"]}
    for start in (1, 2):
        assert load(values).external_url == "http://app.example"
        assert len(caplog.records) == start
    (record, _) = caplog.records
    assert (record.name, record.levelno) == ("flask_atm.config", logging.WARNING)
    assert "keycloak, app.example" in record.getMessage()


def test_g16_plain_http_to_an_api_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    api = {"base_url": "http://api.example", "allowed_origins": ["http://api.example"]}
    load({**SIGN_IN, "ATM_APIS": {"a": api}})
    assert "http://api.example" in caplog.text
    assert "ATM_APIS['a']" in caplog.text


def test_back_channel_is_read(tmp_path: Path) -> None:
    channel = load(
        {
            **SIGN_IN,
            "ATM_BACK_CHANNEL": {
                "CA_BUNDLE": tmp_path,
                "PROXIES": {"https": "http://u:s3cret-canary@proxy:3128"},
                "allowed_endpoint_hosts": ["IDP.example", "keys.example"],
                "pool_size": 2,
                "max_concurrency": 3,
            },
        }
    ).back_channel
    assert channel.ca_bundle == str(tmp_path)
    assert channel.proxies == {"https": "http://u:s3cret-canary@proxy:3128"}
    assert "s3cret-canary" not in repr(channel)
    assert channel.allowed_endpoint_hosts == ("idp.example", "keys.example")
    assert (channel.pool_size, channel.max_concurrency) == (2, 3)
    assert load({**SIGN_IN, "ATM_BACK_CHANNEL": {"proxies": {}}}).back_channel.proxies == {}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"proxies": {"https": "proxy"}}, "['proxies']: ['https'] has to be the URL of a proxy"),
        ({"allowed_http_hosts": "http://keycloak"}, "['allowed_http_hosts']: has to be a host"),
        ({"max_concurrency": 0}, "['max_concurrency']: has to be a whole number"),
        ({"ca_bundle": "/no/such.pem"}, "['ca_bundle']: there is no file"),
        ("keycloak", "ATM_BACK_CHANNEL: has to be a mapping"),
    ],
)
def test_back_channel_is_refused(values: object, expected: str) -> None:
    assert expected in the_problem({**SIGN_IN, "ATM_BACK_CHANNEL": values})


# -- secrets stay secret


def test_secrets_never_show() -> None:
    values = {
        **SIGN_IN,
        "ATM_TOKEN_PARAMS": {"extra": "s3cret-canary"},
        "ATM_CLIENTS": {"job": {**CLIENT, "client_secret": lambda: "s3cret-canary"}},
    }
    config = load(values)
    for shown in (repr(config), str(config), f"{config}", str(dataclasses.asdict(config)["store"])):
        assert "s3cret-canary" not in shown
        assert KEY not in shown
    plain = dataclasses.asdict(load(SIGN_IN))
    assert "s3cret-canary" not in str(plain)
    assert KEY not in str(plain)
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(config.providers["oidc"])


def test_tracebacks_with_local_variables_show_no_secrets() -> None:
    config = load(SIGN_IN)
    settings = {"client_secret": "s3cret-canary", "client_id": True, "scope": "openid"}

    def refused(call: Callable[[], object]) -> str:
        try:
            call()
        except ConfigurationError as error:
            shown = traceback.TracebackException.from_exception(error, capture_locals=True)
            # The frames of this test hold the secrets themselves.
            shown.stack[:] = [frame for frame in shown.stack if "/tests/" not in frame.filename]
            return "".join(shown.format())
        raise AssertionError

    values = {**SIGN_IN, "ATM_ROUTES": "no", "ATM_CLIENTS": {"x": {"client_secret": 1}}}
    for text in (
        refused(lambda: Config.load(values, debug=False, testing=False)),
        refused(lambda: provider_from("x", settings, config)),
        refused(lambda: client_from("x", settings, config)),
    ):
        assert "load.py" in text
        assert "s3cret-canary" not in text
        assert KEY not in text


def test_everything_is_frozen() -> None:
    config = load({**SIGN_IN, "ATM_AUTHORIZE_PARAMS": {"a": "b"}})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.routes = False  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.providers["new"] = config.providers["oidc"]  # type: ignore[index]
    with pytest.raises(TypeError):
        config.providers["oidc"].authorize_params["a"] = "c"


# -- the list of keys

TABLE = """
ISSUER PC|METADATA_URL PC|AUTHORIZATION_ENDPOINT PC|TOKEN_ENDPOINT PC|JWKS_URI PC
USERINFO_ENDPOINT PC|REVOCATION_ENDPOINT PC|INTROSPECTION_ENDPOINT PC|END_SESSION_ENDPOINT PC
PUSHED_AUTHORIZATION_REQUEST_ENDPOINT PC|CLIENT_ID PC|CLIENT_SECRET PC|CLIENT_SECRET_FILE PC
CLIENT_AUTH PC|CLIENT_KEY PC|CLIENT_TLS_CERT PC|CLIENT_TLS_KEY PC|CLIENT_ASSERTION_AUDIENCE PC
SCOPE PC|OFFLINE_ACCESS P|RESOURCE PC|AUDIENCE PC|AUTHORIZE_PARAMS P|TOKEN_PARAMS PC|DPOP PC
DPOP_KEY PC|PAR P|REQUEST_OBJECT P|USERINFO P|SIGN_IN P|CLIENT_TOKEN_SCOPE P
CLIENT_TOKEN_RESOURCE P|ID_TOKEN P|USER_TOKEN_LEEWAY A|CLIENT_TOKEN_LEEWAY A
CLIENT_TOKEN_LOCAL_LIFETIME A|DEFAULT_PROVIDER A|PROVIDERS A|CLIENTS A|APIS A|STORE A
PAIRED_STORE A|CACHE A|ENCRYPTION_KEYS A|ENCRYPTION_KEYS_FILE A|STORE_PREFIX A|GRANT_LIFETIME A
GRANT_IDLE_TIMEOUT A|TOKEN_TIMEOUT A|API_TIMEOUT A|BACK_CHANNEL A|ROUTES A|URL_PREFIX A
EXTERNAL_URL A|AFTER_LOGIN A|AFTER_LOGOUT A|REVOKE_ON_LOGOUT P|LOGOUT_AT_PROVIDER P
"""


def test_keys_are_those_of_the_interface() -> None:
    expected = {f"ATM_{entry}" for line in TABLE.split("\n") for entry in line.split("|") if entry}
    assert {f"{key.name} {key.where}" for key in KEYS} == expected
    assert len(KEYS) == len(expected)
    assert all(key.meaning for key in KEYS)


def test_a_client_has_the_keys_marked_for_clients() -> None:
    marked = {key.name.removeprefix("ATM_").lower() for key in KEYS if "C" in key.where}
    fields = {field.name for field in dataclasses.fields(ClientConfig)}
    assert fields - {"name", "provider"} == marked - {"client_secret_file"}
