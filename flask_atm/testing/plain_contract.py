"""What every plain store has to do: a test class of a store inherits this one."""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from threading import Barrier

import pytest
from flask import Flask
from flask.testing import FlaskClient

from flask_atm.decorators import requires_token
from flask_atm.extension import ATM
from flask_atm.globals import current_user_token
from flask_atm.grants.stores.memory import MemoryStore
from flask_atm.grants.stores.paired import PairedStore
from flask_atm.grants.vault import record_key
from flask_atm.protocols import GrantStore
from flask_atm.testing.clock import FakeClock
from flask_atm.testing.sign_in import sign_in

__all__ = ["PairedSite", "PlainStoreContract"]

_THREADS = 16
_HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class PairedSite:
    """An application whose sign-ins are copied into the store that is tested.

    :param atomic: the atomic store beside it.
    """

    app: Flask
    atomic: MemoryStore
    clock: FakeClock

    def visit(self, client: FlaskClient) -> str:
        """Give the token that a browser's user has, or why there is none."""
        answer = client.get("/token")
        return answer.text if answer.status_code == 200 else str(answer.status_code)

    def lose(self, grant_id: str) -> None:
        """Let the atomic store lose a sign-in, as a server does that comes back empty."""
        self.atomic.delete(record_key(grant_id))


class PlainStoreContract:
    """Three steps on sealed bytes, and what flask-atm makes of them.

    A test class of a store inherits this one, and gives the store by the fixture ``store``::

        class TestTableStore(PlainStoreContract):
            @pytest.fixture
            def store(self):
                return TableStore(engine)
    """

    @pytest.fixture
    def store(self) -> GrantStore:
        """The store that is tested, empty."""
        raise NotImplementedError

    @pytest.fixture
    def keys(self) -> tuple[str, str]:
        """Two keys, as they will come."""
        return sha256(b"one").hexdigest(), sha256(b"two").hexdigest()

    @pytest.fixture
    def site(self, store: GrantStore) -> PairedSite:
        """An application with the store."""
        clock = FakeClock()
        app, atomic = Flask("paired"), MemoryStore(clock=clock)
        app.config.update(
            TESTING=True,
            SECRET_KEY="5f1c8a72e94b4d60a3b7c9d2e8f60413",
            ATM_ISSUER="https://login.example.com",
            ATM_CLIENT_ID="paired",
            ATM_REVOKE_ON_LOGOUT=False,
        )
        ATM(app, store=PairedStore(store, atomic=atomic), clock=clock)

        @app.get("/token")
        @requires_token
        def token() -> str:
            return current_user_token.value

        return PairedSite(app=app, atomic=atomic, clock=clock)

    def copy_of(self, site: PairedSite, client: FlaskClient, grant_id: str) -> bytes | None:
        """Give the copy of a sign-in; a store that lives in requests does it another way."""
        store: GrantStore = self.plain_of(site)
        return store.load(record_key(grant_id))

    def put_copy(
        self, site: PairedSite, client: FlaskClient, grant_id: str, sealed: bytes | None
    ) -> None:
        """Put another copy in its place, or none."""
        store: GrantStore = self.plain_of(site)
        if sealed is None:
            store.delete(record_key(grant_id))
        else:
            store.save(record_key(grant_id), sealed, lifetime=_HOUR)

    @staticmethod
    def plain_of(site: PairedSite) -> GrantStore:
        """Give the store as the application has it."""
        plain = site.app.extensions["atm.state"].plain
        assert isinstance(plain, GrantStore)
        return plain

    # -- the three steps

    def test_nothing_is_there_at_first(self, store: GrantStore, keys: tuple[str, str]) -> None:
        """A key that nobody has saved."""
        assert store.load(keys[0]) is None

    def test_arbitrary_bytes_come_back(self, store: GrantStore, keys: tuple[str, str]) -> None:
        """Sealed bytes are no text, and have zeros, line ends and anything else in them."""
        for data in (bytes(range(256)) * 4, b"\0", b"\n", b"!\x80\x05N.", "ä".encode()):
            store.save(keys[0], data, lifetime=_HOUR)
            assert store.load(keys[0]) == data

    def test_the_last_save_counts(self, store: GrantStore, keys: tuple[str, str]) -> None:
        """Whatever was there before, longer or shorter."""
        store.save(keys[0], b"first, and longer", lifetime=_HOUR)
        store.save(keys[0], b"second", lifetime=_HOUR)
        assert store.load(keys[0]) == b"second"

    def test_keys_do_not_mix(self, store: GrantStore, keys: tuple[str, str]) -> None:
        """Each key has its own bytes, and is deleted alone."""
        for key in keys:
            store.save(key, key.encode(), lifetime=_HOUR)
        assert [store.load(key) for key in keys] == [key.encode() for key in keys]
        store.delete(keys[0])
        assert [store.load(key) for key in keys] == [None, keys[1].encode()]

    def test_what_is_not_there_is_deleted_too(
        self, store: GrantStore, keys: tuple[str, str]
    ) -> None:
        """Once or twice."""
        store.delete(keys[0])
        store.save(keys[0], b"1", lifetime=_HOUR)
        store.delete(keys[0])
        store.delete(keys[0])
        assert store.load(keys[0]) is None

    def test_any_lifetime_is_taken(self, store: GrantStore, keys: tuple[str, str]) -> None:
        """A part of a second, and longer than some servers can count."""
        store.save(keys[0], b"short", lifetime=0.4)
        store.save(keys[1], b"long", lifetime=200 * 365 * 86400.0)
        assert store.load(keys[1]) == b"long"

    # -- beside an atomic store

    def test_a_sign_in_is_copied_sealed(self, site: PairedSite) -> None:
        """What is kept shows nothing, and is never a pickle."""
        client = site.app.test_client()
        grant_id = sign_in(client, {"sub": "alice"}, access_token="a-token-in-clear")
        copy = self.copy_of(site, client, grant_id)
        assert copy is not None
        for secret in (b"a-token-in-clear", b"alice", grant_id.partition(".")[2].encode()):
            assert secret not in copy

    def test_a_copy_that_is_lost_costs_nothing_and_comes_back(self, site: PairedSite) -> None:
        """The atomic store answers, and the next request makes the copy anew."""
        client = site.app.test_client()
        grant_id = sign_in(client, access_token="the-token")
        self.put_copy(site, client, grant_id, None)
        assert site.visit(client) == "the-token"
        assert self.copy_of(site, client, grant_id)

    def test_a_record_that_is_lost_is_taken_over_from_its_copy_in_doubt(
        self, site: PairedSite
    ) -> None:
        """The user stays signed in."""
        client = site.app.test_client()
        grant_id = sign_in(client, access_token="the-token")
        site.lose(grant_id)
        assert site.visit(client) == "the-token"
        stored = site.atomic.read(record_key(grant_id))
        assert stored is not None
        assert stored.control.doubt

    def test_many_take_a_record_over_at_once(self, site: PairedSite) -> None:
        """Each of them gets the same sign-in."""
        client = site.app.test_client()
        grant_id = sign_in(client, access_token="the-token")
        with client.session_transaction() as session:
            handle = session["_atm"]
        site.lose(grant_id)
        barrier = Barrier(_THREADS)

        def visit(_: int) -> str:
            browser = site.app.test_client()
            with browser.session_transaction() as session:
                session["_atm"] = handle
            barrier.wait(30)
            return site.visit(browser)

        with ThreadPoolExecutor(_THREADS) as pool:
            assert set(pool.map(visit, range(_THREADS))) == {"the-token"}

    def test_a_copy_is_of_no_use_after_the_sign_out(self, site: PairedSite) -> None:
        """Also where nothing was left to revoke, and whoever has kept it."""
        client = site.app.test_client()
        grant_id = sign_in(client)
        copy = self.copy_of(site, client, grant_id)
        with client.session_transaction() as session:
            handle = session["_atm"]
        with site.app.test_request_context():
            site.app.extensions["atm"].revoke_grant(grant_id)
        with client.session_transaction() as session:
            session["_atm"] = handle
        self.put_copy(site, client, grant_id, copy)
        assert site.visit(client) == "401"
        assert not self.copy_of(site, client, grant_id)

    def test_a_copy_is_of_no_use_after_its_end(self, site: PairedSite) -> None:
        """The end is inside the seal."""
        client = site.app.test_client()
        grant_id = sign_in(client, expires_in=90 * 86400)
        copy = self.copy_of(site, client, grant_id)
        site.lose(grant_id)
        site.clock.advance(14 * 86400 + 1)
        self.put_copy(site, client, grant_id, copy)
        assert site.visit(client) == "401"
        assert site.atomic.read(record_key(grant_id)) is None

    def test_a_copy_of_somebody_else_is_none(self, site: PairedSite) -> None:
        """Put in the place of another one it does not open."""
        alice, bob = site.app.test_client(), site.app.test_client()
        grant_id = sign_in(alice, {"sub": "alice"})
        other_id = sign_in(bob, {"sub": "bob"})
        self.put_copy(site, alice, grant_id, self.copy_of(site, bob, other_id))
        site.lose(grant_id)
        assert site.visit(alice) == "401"

    def test_what_is_changed_or_cut_is_no_copy(
        self, site: PairedSite, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Nothing is raised, and nothing of it is used."""
        client = site.app.test_client()
        grant_id = sign_in(client)
        copy = self.copy_of(site, client, grant_id)
        assert copy is not None
        site.lose(grant_id)
        middle = len(copy) // 2
        flipped = copy[:middle] + bytes([copy[middle] ^ 1]) + copy[middle + 1 :]
        for bad in (flipped, copy[:-1], copy[:40], copy[:3], b"\0", copy + b"\0"):
            self.put_copy(site, client, grant_id, bad)
            assert site.visit(client) == "401"
        assert not [one for one in caplog.records if one.levelno > logging.ERROR]
        self.put_copy(site, client, grant_id, copy)
        assert site.visit(client) != "401"
