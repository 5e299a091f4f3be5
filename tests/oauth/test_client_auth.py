"""Client authentication: what each method adds, and that a secret and an assertion never meet."""

from base64 import b64decode
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from flask_atm.errors import ConfigurationError
from flask_atm.oauth.client_auth import (
    BY_METHOD,
    ClientSecretBasic,
    ClientSecretPost,
    NoClientAuth,
)
from flask_atm.protocols import ClientAuth
from flask_atm.tokens import Secret

FORM = {"grant_type": "client_credentials", "resource": ["https://a", "https://b"]}
EVERY = [
    ClientSecretBasic("id", Secret("canary")),
    ClientSecretPost("id", Secret("canary")),
    NoClientAuth("id"),
]


def ask(
    auth: ClientAuth, form: dict[str, Any] | None = None, client_assertion: str | None = None
) -> tuple[dict[str, str | Sequence[str]], dict[str, str]]:
    return auth.authenticate(
        FORM if form is None else form,
        endpoint="https://as.example.com/token",
        issuer=None,
        client_assertion=client_assertion,
    )


def test_basic_puts_both_into_the_header_form_encoded() -> None:
    form, headers = ask(ClientSecretBasic("a:b c", Secret("p%ä+s /&=~")))
    scheme, _, value = headers["Authorization"].partition(" ")
    assert scheme == "Basic"
    assert b64decode(value) == b"a%3Ab+c:p%25%C3%A4%2Bs+%2F%26%3D~"
    assert form == FORM


def test_post_puts_both_into_the_form() -> None:
    form, headers = ask(ClientSecretPost("id", Secret("p&=s")))
    assert form == {**FORM, "client_id": "id", "client_secret": "p&=s"}
    assert headers == {}


def test_a_public_client_says_who_it_is() -> None:
    assert ask(NoClientAuth("id")) == ({**FORM, "client_id": "id"}, {})


@pytest.mark.parametrize("auth", EVERY, ids=lambda auth: auth.method)
def test_bo3_an_assertion_of_the_caller_wins_and_meets_no_secret(auth: ClientAuth) -> None:
    form, headers = ask(auth, client_assertion="header.payload.signature")
    assert headers == {}
    assert form == {
        **FORM,
        "client_id": "id",
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": "header.payload.signature",
    }


@pytest.mark.parametrize("auth", EVERY, ids=lambda auth: auth.method)
def test_the_form_of_the_caller_is_not_changed(auth: ClientAuth) -> None:
    before = dict(FORM)
    form, _ = ask(auth)
    assert before == FORM
    assert form is not FORM


@pytest.mark.parametrize("auth", EVERY, ids=lambda auth: auth.method)
@pytest.mark.parametrize("name", ["client_secret", "client_assertion", "client_assertion_type"])
@pytest.mark.parametrize("client_assertion", [None, "a.b.c"])
def test_parameters_bring_no_second_authentication(
    auth: ClientAuth, name: str, client_assertion: str | None
) -> None:
    with pytest.raises(ConfigurationError, match=name) as caught:
        ask(auth, {name: "canary"}, client_assertion)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("made", [ClientSecretBasic, ClientSecretPost])
def test_l7_a_callable_is_asked_for_every_request(made: Callable[..., ClientAuth]) -> None:
    secrets = iter(["first", "second"])
    auth = made("id", lambda: next(secrets))
    assert ask(auth) != ask(auth)
    assert next(secrets, None) is None


@pytest.mark.parametrize("made", [ClientSecretBasic, ClientSecretPost])
@pytest.mark.parametrize("given", ["", None, 123, b"bytes", Secret("canary")])
def test_a_callable_that_gives_no_text_is_an_error(
    made: Callable[..., ClientAuth], given: Any
) -> None:
    with pytest.raises(ConfigurationError, match=r"'id'.*callable") as caught:
        ask(made("id", lambda: given))
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("made", [ClientSecretBasic, ClientSecretPost])
def test_a_callable_is_not_asked_if_there_is_an_assertion(made: Callable[..., ClientAuth]) -> None:
    def secret() -> str:
        raise AssertionError

    ask(made("id", secret), client_assertion="a.b.c")


def test_a_secret_is_wanted_by_those_that_use_it_only() -> None:
    for method in ("client_secret_basic", "client_secret_post"):
        with pytest.raises(ConfigurationError, match="client_secret"):
            BY_METHOD[method]("id", None)
    with pytest.raises(ConfigurationError, match="remove the secret") as caught:
        BY_METHOD["none"]("id", Secret("canary"))
    assert "canary" not in str(caught.value)


def test_every_method_is_registered_by_its_name() -> None:
    assert sorted(BY_METHOD) == ["client_secret_basic", "client_secret_post", "none"]
    for method, make in BY_METHOD.items():
        assert make("id", None if method == "none" else Secret("s")).method == method


@pytest.mark.parametrize("auth", EVERY, ids=lambda auth: auth.method)
def test_the_secret_is_not_shown(auth: ClientAuth) -> None:
    assert "canary" not in f"{auth!r} {auth}"
