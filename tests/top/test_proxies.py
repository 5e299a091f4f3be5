"""``current_login`` and ``current_user_token``: what they mean, when, and what they cost."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from flask import Flask, Response, render_template_string, stream_with_context

from flask_atm.errors import LoginRequired, StoreError
from flask_atm.extension import ATM
from flask_atm.globals import current_login, current_user_token
from flask_atm.grants.stores import MemoryStore
from flask_atm.testing import FakeClock
from tests.grants.tools import WatchedStore
from tests.servers import OIDCServer

from .support import HERE, Site, make_site, provider_settings


def add_views(app: Flask) -> None:
    @app.get("/page")
    def page() -> str:
        return render_template_string(
            "{% if current_login %}{{ current_login.claims.name }}{% else %}nobody{% endif %}"
            "{% if current_user_token %} with a token{% endif %}"
        )

    @app.get("/often")
    @app.get("/often/<int:times>")
    def often(times: int = 5) -> dict[str, Any]:
        found = [current_login.subject for _ in range(times)]
        return {"found": found, "values": [current_user_token.value for _ in range(times)]}

    @app.get("/grant-id")
    def grant_id() -> str:
        return current_login.grant_id


@pytest.fixture
def store(fake_clock: FakeClock) -> WatchedStore:
    return WatchedStore(MemoryStore(clock=fake_clock))


@pytest.fixture
def site(oidc: OIDCServer, store: WatchedStore, fake_clock: FakeClock) -> Site:
    return make_site(oidc, before=add_views, atm={"store": store, "clock": fake_clock})


def signed_in(site: Site, account: str = "alice") -> Any:
    client = site.client()
    site.sign_in(client, account=account)
    return client


# -- nobody


def test_nobody_is_false_and_everything_else_raises(site: Site) -> None:
    with site.app.test_request_context():
        for proxy in (current_login, current_user_token):
            assert not bool(proxy)
            assert repr(proxy) == "<nobody is signed in>"
            for name in ("claims", "value", "subject", "anything"):
                with pytest.raises(LoginRequired) as raised:
                    getattr(proxy, name)
                assert (raised.value.reason, raised.value.provider) == ("anonymous", "oidc")


def test_templates_ask_without_fear(site: Site) -> None:
    assert site.client().get("/page").text == "nobody"
    assert signed_in(site).get("/page").text == "Alice Example with a token"


def test_outside_a_request_nothing_is_silently_false(site: Site) -> None:
    for proxy in (current_login, current_user_token):
        with pytest.raises(LoginRequired, match="use_grant") as raised:
            bool(proxy)
        assert raised.value.reason == "outside_request"
        with site.app.app_context(), pytest.raises(LoginRequired, match="use_grant"):
            bool(proxy)


# -- what it costs


def test_one_request_is_one_read_of_the_store_and_never_the_network(
    site: Site, store: WatchedStore, fake_clock: FakeClock
) -> None:
    client = signed_in(site)
    site.provider.stop_listening()
    for _ in range(2):
        store.calls.clear()
        answer: Any = client.get("/often").json
        assert answer["found"] == ["alice"] * 5
        assert len(set(answer["values"])) == 1
        assert store.mine == ["read"]
    # The truth value and the claims ask for no renewal, however old the token is.
    fake_clock.advance(1000)
    store.calls.clear()
    assert client.get("/page").text == "Alice Example with a token"
    assert store.mine == ["read"]


def test_a_store_that_is_silent_is_not_nobody(
    site: Site, store: WatchedStore, fake_clock: FakeClock
) -> None:
    handle: dict[str, str] = {}
    with signed_in(site).session_transaction() as session:
        handle.update(session["_atm"])
    # Another process, which has no copy of the record.
    other = make_site(site.provider, atm={"store": store, "clock": fake_clock})
    store.down = True
    with other.app.test_request_context() as context:
        context.session["_atm"] = handle
        for proxy in (current_login, current_user_token):
            with pytest.raises(StoreError):
                bool(proxy)


def test_a_token_is_looked_at_again_at_each_use(site: Site, fake_clock: FakeClock) -> None:
    @site.app.get("/stream")
    def stream() -> Response:
        def lines() -> Iterator[str]:
            for _ in range(4):
                yield f"{current_user_token.value}\n"
                fake_clock.advance(250)
                site.provider.advance(250)

        return Response(stream_with_context(lines()))

    client = signed_in(site)
    found = client.get("/stream").text.split()
    # Valid for 300 s: each of them is renewed before it expires, and what was taken out stays.
    assert len(found) == 4
    assert len(set(found)) >= 3
    assert 2 <= len(site.provider.token_requests(grant_type="refresh_token")) <= 3


# -- whose it is


def test_an_application_context_shared_by_two_requests_never_mixes_their_users(site: Site) -> None:
    alice, bob, nobody = signed_in(site), signed_in(site, "bob"), site.client()
    with site.app.app_context():
        # Flask keeps one g for all of these.
        for _ in range(3):
            assert alice.get("/often/1").json["found"] == ["alice"]
            assert bob.get("/often/1").json["found"] == ["bob"]
            assert nobody.get("/page").text == "nobody"


def test_after_a_sign_out_in_the_same_request_nobody_is_there(site: Site) -> None:
    @site.app.post("/leave")
    def leave() -> dict[str, Any]:
        before = (current_login.subject, current_user_token.token_type)
        site.atm.logout()
        return {"before": before, "after": [bool(current_login), bool(current_user_token)]}

    answer = signed_in(site).post("/leave", headers=HERE).json
    assert answer == {"before": ["alice", "Bearer"], "after": [False, False]}


def test_a_grant_is_used_in_jobs_threads_and_other_requests(site: Site) -> None:
    @site.app.get("/as-another/<grant_id>")
    def as_another(grant_id: str) -> list[str]:
        found = [current_user_token.grant_id, current_login.subject]
        # Also if what is done there fails.
        with suppress(ZeroDivisionError), site.atm.use_grant(grant_id):
            found += [current_user_token.grant_id, current_login.subject]
            found[0] = str(1 / 0)
        return [*found, current_user_token.grant_id, current_login.subject]

    alice = signed_in(site).get("/grant-id").text
    bob_client = signed_in(site, "bob")
    bob = bob_client.get("/grant-id").text

    def job(grant_id: str) -> tuple[str, str]:
        with site.app.app_context(), site.atm.use_grant(grant_id):
            assert bool(current_login)
            return current_login.subject, current_user_token.grant_id

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(job, [alice, bob] * 20))
    assert found == [("alice", alice), ("bob", bob)] * 20
    found_there = bob_client.get(f"/as-another/{alice}").json
    assert found_there == [bob, "bob", alice, "alice", bob, "bob"]


def test_a_grant_of_one_provider_is_none_of_another(oidc: OIDCServer) -> None:
    other, _ = provider_settings(oidc, "http://localhost/oidc/callback/other")
    site = make_site(oidc, before=add_views, ATM_PROVIDERS={"other": other})
    alice = signed_in(site).get("/grant-id").text
    with site.app.app_context(), site.atm.use_grant(alice):
        assert current_user_token.provider == "oidc"
        for call in (
            lambda: site.atm.get_user_token(provider="other"),
            lambda: site.atm.user_session("https://api.example", provider="other"),
        ):
            with pytest.raises(LoginRequired) as raised:
                call()
            assert raised.value.provider == "other"


def test_a_thread_of_a_view_has_no_user_of_its_own(site: Site) -> None:
    seen: list[Any] = []

    @site.app.get("/threads")
    def threads() -> str:
        assert current_login.subject == "alice"

        def work() -> None:
            with site.app.app_context():
                try:
                    seen.append(current_login.subject)
                except LoginRequired as error:
                    seen.append(error.reason)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return "done"

    assert signed_in(site).get("/threads").text == "done"
    assert seen == ["outside_request"]


# -- a grant that is not here


def test_a_grant_of_another_store_is_told_apart_and_logged_once_a_minute(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    client = signed_in(site)
    cookie = client.get_cookie("session")
    # A second host of the same application, with a store of its own.
    second = make_site(site.provider, before=add_views)
    visitor = second.client()
    visitor.set_cookie("session", cookie.value)
    for _ in range(3):
        answer: Any = visitor.get("/token").json
        assert (answer["status"], answer["reason"]) == (401, "other_store")
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "ATM_STORE" in errors[0].getMessage()
    ours = client.get("/grant-id").text
    assert ours.partition(".")[2] not in caplog.text


def test_a_grant_that_has_ended_is_said_to_have_ended(site: Site) -> None:
    client = signed_in(site)
    grant_id = client.get("/grant-id").text
    with site.app.app_context():
        site.atm.revoke_grant(grant_id)
        with site.atm.use_grant(grant_id):
            assert not bool(current_login)
    assert client.get("/token").json["reason"] == "ended"


@pytest.mark.parametrize("value", ["x", 5, None, ["a"], {"oidc": 5}, {"oidc": "no dot"}])
def test_what_is_no_handle_is_nobody(site: Site, value: Any) -> None:
    client = site.client()
    with client.session_transaction() as session:
        session["_atm"] = value
    assert client.get("/page").text == "nobody"


def test_an_application_may_know_its_grants_otherwise(oidc: OIDCServer) -> None:
    """Where the Flask session has none, it is asked."""
    known: dict[str, str] = {}
    site = make_site(oidc, before=add_views, atm={"grant_loader": known.get})
    assert site.client().get("/page").text == "nobody"
    known["oidc"] = signed_in(site).get("/grant-id").text
    assert site.client().get("/page").text == "Alice Example with a token"


def test_without_an_atm_the_cure_is_named() -> None:
    app = Flask(__name__)
    with app.test_request_context(), pytest.raises(Exception, match=r"atm\.init_app\(app\)"):
        bool(current_login)
    assert "atm" not in app.extensions
    assert ATM() is not ATM()
