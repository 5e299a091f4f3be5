"""The extension points: what a part of your own has to offer. No base classes, no registration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from flask_atm.tokens import AccessToken, TokenParameters

if TYPE_CHECKING:
    from flask_atm.grants.control import Begun, Outcome, Stored

__all__ = [
    "AtomicGrantStore",
    "BatchedGrantStore",
    "ClientAuth",
    "Clock",
    "Customizer",
    "Doomed",
    "GrantStore",
    "RequestContext",
    "Settings",
    "TokenSource",
]


class Clock(Protocol):
    """The present as epoch seconds. Called from any thread."""

    def __call__(self) -> float: ...


@runtime_checkable
class TokenSource(Protocol):
    """Anything that can give a valid access token. Called from any thread."""

    def get(
        self,
        parameters: TokenParameters,
        *,
        rejected: str | None = None,
        deadline: float | None = None,
    ) -> AccessToken:
        """Give a token that is valid now.

        :param parameters: what the caller asks for.
        :param rejected: the value of a token that an API has just refused with 401: another one
            is wanted. The same one comes back where none can be had, or not so soon.
        :param deadline: the latest end of the wait, by ``time.monotonic()``.
        :raises ATMError: there is none; the kind of error says what to do.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestContext:
    """The request that a customizer may look at.

    :param method: the HTTP method, or ``None`` where there is no request.
    :param url: the full URL, or ``None`` where there is no request.
    :param headers: its headers.
    :param incoming: ``True``: the request that this application serves; ``False``: the one it
        is about to send.
    :param api: the name in ``ATM_APIS``, if the session has one.
    """

    method: str | None
    url: str | None
    headers: Mapping[str, str]
    incoming: bool
    api: str | None = None


class ClientAuth(Protocol):
    """How this application authenticates at an authorization server (RFC 6749, section 2.3).

    Called anew for every attempt, from any thread: what it makes is never sent twice.
    """

    @property
    def method(self) -> str:
        """The name in ``token_endpoint_auth_methods_supported``."""
        ...

    def authenticate(
        self,
        form: Mapping[str, str | Sequence[str]],
        *,
        endpoint: str,
        issuer: str | None,
        client_assertion: str | None = None,
    ) -> tuple[dict[str, str | Sequence[str]], dict[str, str]]:
        """Add what authenticates the client.

        :param form: the parameters of the request; not changed.
        :param endpoint: the URL that the request goes to.
        :param issuer: the issuer identifier of the server, where it is known.
        :param client_assertion: a JWT of the caller's own that is sent instead of any secret.
        :returns: the form and the headers to send.
        """
        ...


class AtomicGrantStore(Protocol):
    """Where grants live: eleven steps, each one atomic, for all threads, processes and hosts.

    The store sees keys that are hashes, sealed bytes, and a small control part in clear. All
    instants are epoch seconds by the store's own clock. Every step may raise
    :exc:`~flask_atm.StoreError`, and is then safe to repeat. What each step does is written down
    once, as code, in :mod:`flask_atm.grants.control`; a store makes it atomic.
    """

    def create(
        self,
        key: str,
        sealed: bytes,
        *,
        ends_at: float,
        index: Sequence[str] = (),
        doubt: bool = False,
        version: int = 1,
    ) -> bool:
        """Put a record where there is none; ``False`` where there is one, or a tombstone.

        With ``doubt`` and its ``version`` what is put there is a copy of a record that was lost.
        """
        ...

    def read(self, key: str) -> "Stored | None":
        """Give the record or its tombstone; ``None`` where there is neither, or it has ended."""
        ...

    def begin(
        self, key: str, *, owner: str, expected_version: int, lease: float, intent: str | None
    ) -> "Begun":
        """Take the lease of ``lease`` seconds and write down what is about to be sent."""
        ...

    def commit(
        self,
        key: str,
        sealed: bytes,
        *,
        expected_version: int,
        commit_id: str,
    ) -> "Outcome":
        """Store the result of a refresh, free the lease, end the doubt."""
        ...

    def update(
        self,
        key: str,
        sealed: bytes,
        *,
        expected_version: int,
        index: Sequence[str] | None = None,
    ) -> "Outcome":
        """Store anything else; refused while a lease is held or an intent is in doubt.

        With ``index`` the record is found under these entries from now on, and under no others.
        """
        ...

    def adopt(self, key: str, sealed: bytes, *, expected_version: int, version: int) -> "Outcome":
        """Put a copy of a later ``version`` over a record that was restored from a backup."""
        ...

    def abort(
        self,
        key: str,
        *,
        owner: str,
        clear_intent: bool,
        pause: float = 0.0,
        failures: int = 0,
        suspect: str | None = None,
        dead: str | None = None,
    ) -> None:
        """Free the lease without a result; ``pause`` seconds until the next attempt."""
        ...

    def delete(
        self,
        key: str,
        *,
        keep: bytes | None = None,
        index: Sequence[str] = (),
        expected_version: int | None = None,
    ) -> bool:
        """Remove a record; with ``keep`` leave a tombstone with these bytes until its end.

        With ``expected_version`` only a record of that version: what is kept may be all that is
        left of it. ``False`` where no record was removed.
        """
        ...

    def find(self, index: str, limit: int = 100) -> list[str]:
        """Give the keys of at most ``limit`` records and tombstones under an index entry."""
        ...

    def scan(self, after: str, limit: int) -> "list[tuple[str, Stored]]":
        """Give at most ``limit`` records with keys greater than ``after``, in order of key."""
        ...

    def purge(self, limit: int) -> int:
        """Remove at most ``limit`` records and tombstones that have ended; tell how many.

        Nobody can see them any more; what is won is their space. 0: there are no more, or the
        store removes them by itself.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Doomed:
    """A record that is to be removed: the arguments of :meth:`AtomicGrantStore.delete`.

    :param ends_at: the end of the record, where it is known already: it never changes.
    """

    key: str
    keep: bytes | None = field(default=None, repr=False)
    index: Sequence[str] = ()
    expected_version: int | None = None
    ends_at: float | None = None


@runtime_checkable
class BatchedGrantStore(Protocol):
    """What an atomic store may offer besides: the same steps for many records in one go.

    Ending ten thousand sign-ins one by one takes seconds. A store without these two methods is
    asked record by record. Every single removal is atomic, the batch as a whole need not be: where
    a batch raises :exc:`~flask_atm.StoreError`, some of it may be done, and it is safe to repeat.
    No batch has more than 500 records, and none may keep others out for longer than 50 ms.
    """

    def read_many(self, keys: Sequence[str]) -> "list[Stored | None]":
        """Do :meth:`AtomicGrantStore.read` for each key, in this order."""
        ...

    def delete_many(self, doomed: Sequence[Doomed]) -> list[bool]:
        """Do :meth:`AtomicGrantStore.delete` for each record, in this order; no key comes twice."""
        ...


@runtime_checkable
class GrantStore(Protocol):
    """A plain store: keeps copies of sign-ins beside the atomic store that decides about them.

    Three steps on sealed bytes, none of which has to be atomic: a table of the application, a file,
    a dictionary. What it loses, or gives back too old, costs nothing as long as the atomic store
    has the record; see :class:`flask_atm.stores.PairedStore`. Called from any thread and process.

    Where it does not answer it raises :exc:`~flask_atm.StoreError` or an :exc:`OSError` (which
    :exc:`ConnectionError` and :exc:`TimeoutError` are): then it is said once a minute, and the
    request goes on. Anything else it raises is a mistake in it, and ends the request.
    """

    def load(self, key: str) -> bytes | None:
        """Give what was saved last under a key; ``None`` where there is nothing, or no more.

        :param key: at most 64 characters, ``0-9a-f``.
        """
        ...

    def save(self, key: str, sealed: bytes, *, lifetime: float) -> None:
        """Keep these bytes, whatever was there before.

        :param lifetime: seconds from now after which nobody asks for them any more.
        """
        ...

    def delete(self, key: str) -> None:
        """Forget a key, also one that is not there."""
        ...


class Customizer(Protocol):
    """Changes the parameters of a call by the request that it belongs to."""

    def __call__(self, context: RequestContext, parameters: TokenParameters) -> TokenParameters: ...


class Settings(Protocol):
    """What a loader returns for a name: the keys of a provider or client, or ``None``."""

    def __call__(self, name: str) -> Mapping[str, Any] | None: ...
