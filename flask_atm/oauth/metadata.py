"""What an authorization server says of itself (OIDC Discovery, RFC 8414), and its keys (JWKS).

Documents are fetched when they are first needed, renewed once an hour, and kept for a day while
the server does not answer. One thread fetches; whoever has a usable document does not wait for it.
"""

import copy
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Final, Generic, TypeVar
from urllib.parse import urlsplit, urlunsplit

from flask_atm.errors import ATMError, ConfigurationError, ProtocolError, ServerUnavailable
from flask_atm.oauth.back_channel import Answer, BackChannel, Failure
from flask_atm.oauth.keys import VerificationKey, read_jwks
from flask_atm.protocols import Clock
from flask_atm.tokens import FrozenDict

__all__ = ["ENDPOINTS", "MetadataCache", "ServerLocation", "ServerMetadata"]

#: The endpoints that are used, and may be configured, by their names in the metadata.
ENDPOINTS: Final = (
    "authorization_endpoint",
    "token_endpoint",
    "jwks_uri",
    "userinfo_endpoint",
    "revocation_endpoint",
    "introspection_endpoint",
    "end_session_endpoint",
    "pushed_authorization_request_endpoint",
)
# Some servers name these in the metadata of RFC 8414 only.
_COMPLETED: Final = ("token_endpoint", "revocation_endpoint", "introspection_endpoint")
_FRESH: Final = 3600.0
_FRESH_IF_INCOMPLETE: Final = 300.0
_USABLE: Final = 86400.0
_REFETCH_PAUSE: Final = 30.0
_LONGEST_PAUSE: Final = 300.0
_MAX_BYTES: Final = 512 * 1024
_MAX_ENTRIES: Final = 1000
_WHY: Final[Mapping[str, str]] = {
    "dns": "the name of the host is not known; check the issuer",
    "refused": "nobody accepts a connection there",
    "timeout": "no answer in time",
    "tls": "its certificate is not trusted; for a CA of your own set ca_bundle of ATM_BACK_CHANNEL",
}

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerLocation:
    """Where the metadata of an authorization server are, as configured.

    :param name: the name of the provider or client, for messages and the HTTP session.
    :param issuer: the issuer identifier; ``None`` where only endpoints are configured.
    :param metadata_url: where the document lies, if not where the standards put it.
    :param endpoints: configured ones by metadata name; they win over the document.
    """

    name: str
    issuer: str | None = None
    metadata_url: str | None = None
    endpoints: Mapping[str, str] = field(default_factory=FrozenDict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerMetadata:
    """What is known of an authorization server; the names are those of RFC 8414.

    :param provider: the name in the configuration.
    :param document: all that the server said.
    """

    provider: str
    issuer: str | None
    authorization_endpoint: str | None = None
    token_endpoint: str | None = None
    jwks_uri: str | None = None
    userinfo_endpoint: str | None = None
    revocation_endpoint: str | None = None
    introspection_endpoint: str | None = None
    end_session_endpoint: str | None = None
    pushed_authorization_request_endpoint: str | None = None
    scopes_supported: tuple[str, ...] | None = None
    code_challenge_methods_supported: tuple[str, ...] | None = None
    id_token_signing_alg_values_supported: tuple[str, ...] = ()
    token_endpoint_auth_methods_supported: tuple[str, ...] | None = None
    authorization_response_iss_parameter_supported: bool = False
    document: FrozenDict = field(default_factory=FrozenDict, repr=False)


class MetadataCache:
    """Metadata and keys of every server that one application knows. Thread-safe, fork-safe.

    :param back_channel: sends the requests.
    :param clock: epoch seconds: the age of documents.
    :param timeout: seconds that one fetch may take.
    :param monotonic: seconds for the pauses between attempts.
    """

    def __init__(
        self,
        back_channel: BackChannel,
        *,
        clock: Clock = time.time,
        timeout: float = 6.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._back_channel = back_channel
        self._clock = clock
        self._timeout = timeout
        self._monotonic = monotonic
        self._servers: dict[object, _Slot[ServerMetadata]] = {}
        self._key_sets: dict[object, _Slot[tuple[VerificationKey, ...]]] = {}

    def get(self, location: ServerLocation) -> ServerMetadata:
        """Give the metadata; at the first use, and once an hour, this is a request.

        :raises ServerUnavailable: no document can be had now.
        :raises ProtocolError: what is there is not the metadata of this issuer.
        :raises ConfigurationError: a URL of the location may not be used.
        """
        return self._server(location).get()

    def peek(self, location: ServerLocation) -> ServerMetadata | None:
        """Give the metadata if they are here: never the network."""
        if location.issuer is None and not location.metadata_url:
            return self.get(location)
        return self._server(location).peek()

    def age(self, location: ServerLocation) -> float | None:
        """Give the seconds since the metadata came; ``None`` where none came from a server."""
        return self._server(location).age()

    def warm(self, metadata: ServerMetadata) -> None:
        """Load the keys if the server has any and they are not here. Raises as :meth:`get`."""
        if metadata.jwks_uri:
            self.keys(metadata)

    def keys(self, metadata: ServerMetadata) -> tuple[VerificationKey, ...]:
        """Give the keys that can verify signatures of this server. Raises as :meth:`get`."""
        return self._key_set(metadata).get()

    def candidates(
        self, metadata: ServerMetadata, kid: str | None, alg: str, *, fetch: bool = True
    ) -> Iterator[VerificationKey]:
        """Give the keys that may have made a signature, best first.

        When these are used up, the JWKS is fetched again, at most every 30 s, and what is new in
        it follows. Raises as :meth:`get`, but not where a key of this name was given before.

        :param fetch: ``False``: only what is here, never the network (while a lease is held).
        """
        slot = self._key_set(metadata)
        keys = slot.get() if fetch else slot.peek() or ()
        known = list(_matching(keys, kid, alg))
        yield from known
        if not fetch:
            return
        try:
            newer = slot.newer(keys)
        except (ServerUnavailable, ProtocolError):
            if kid is None or all(key.kid != kid for key in known):
                raise
            return
        yield from (key for key in _matching(newer, kid, alg) if key not in known)

    def find_key(
        self, metadata: ServerMetadata, kid: str | None, alg: str
    ) -> VerificationKey | None:
        """Give the first of :meth:`candidates` that may be used with ``alg``."""
        fitting = (key for key in self.candidates(metadata, kid, alg) if alg in key.algorithms)
        return next(fitting, None)

    def _server(self, location: ServerLocation) -> "_Slot[ServerMetadata]":
        endpoints = tuple(sorted(location.endpoints.items()))
        key = (location.name, location.issuer, location.metadata_url, endpoints)
        slot = self._servers.get(key)
        return slot or self._add(self._servers, key, lambda: self._load_metadata(location))

    def _key_set(self, metadata: ServerMetadata) -> "_Slot[tuple[VerificationKey, ...]]":
        if not metadata.jwks_uri:
            raise ProtocolError(
                f"Provider {metadata.provider!r} names no jwks_uri: nothing that it signs can be"
                " checked. Configure its jwks_uri."
            )
        slot = self._key_sets.get(metadata.jwks_uri)
        return slot or self._add(
            self._key_sets, metadata.jwks_uri, lambda: self._load_keys(metadata)
        )

    def _add(
        self, slots: "dict[object, _Slot[_T]]", key: object, load: "Callable[[], _Loaded[_T]]"
    ) -> "_Slot[_T]":
        for oldest in list(slots)[: 1 - _MAX_ENTRIES]:
            slots.pop(oldest, None)
        new = _Slot(load, self._clock, self._monotonic, patience=self._timeout + 1)
        return slots.setdefault(key, new)

    def _load_metadata(self, location: ServerLocation) -> "_Loaded[ServerMetadata]":
        deadline = time.monotonic() + self._timeout
        for url in location.endpoints.values():
            self._back_channel.check_url(url)
        if location.issuer is None:
            if location.metadata_url:
                raise ConfigurationError(
                    f"Provider {location.name!r} has a metadata URL and no issuer: set the issuer,"
                    " which the metadata have to name."
                )
            return _metadata(location, {}), math.inf
        return self._discover(location, location.issuer, deadline)

    def _discover(
        self, location: ServerLocation, issuer: str, deadline: float
    ) -> "_Loaded[ServerMetadata]":
        if "{" in issuer:
            raise ConfigurationError(f"Provider {location.name!r}: {_placeholder(issuer)}")
        first = location.metadata_url or _openid_url(issuer)
        document = self._document(location, first, deadline)
        fresh_for = _FRESH
        if not location.metadata_url and _lacks(document, location.endpoints):
            try:
                second = self._document(location, _oauth_url(issuer), deadline)
                document = {**(second or {}), **(document or {})} or None
            except (ServerUnavailable, ProtocolError) as error:
                if document is None:
                    raise
                _log.debug("metadata of %s not completed: %s", location.name, error)
                fresh_for = _FRESH_IF_INCOMPLETE
        if document is None and "token_endpoint" not in location.endpoints:
            raise ProtocolError(
                f"Provider {location.name!r} has no metadata at {first}. Check the issuer, or"
                " set the metadata URL, or the endpoints."
            )
        return _metadata(location, document or {}), fresh_for

    def _document(
        self, location: ServerLocation, url: str, deadline: float
    ) -> dict[str, Any] | None:
        """Fetch and check a metadata document; ``None`` where there is none."""
        what = f"The metadata of provider {location.name!r} at {url}"
        answer = self._fetch(url, what, location.name, deadline)
        if 400 <= answer.status < 500:
            return None
        document = _content(answer, what)
        _check_issuer(document.get("issuer"), location.issuer, what)
        for name in ENDPOINTS:
            if name not in location.endpoints:
                self._check_endpoint(name, document.get(name), what)
        return document

    def _check_endpoint(self, name: str, url: object, what: str) -> None:
        if url is None or url == "":
            return
        problem = "" if isinstance(url, str) else "it is no text."
        if isinstance(url, str):
            try:
                self._back_channel.check_url(url)
            except ConfigurationError as error:
                problem = str(error)
        if problem:
            raise ProtocolError(
                f"{what} have a {name} that cannot be used: {problem} Correct the server, or"
                f" configure the {name}."
            )

    def _load_keys(self, metadata: ServerMetadata) -> "_Loaded[tuple[VerificationKey, ...]]":
        url = metadata.jwks_uri or ""
        what = f"The keys (JWKS) of provider {metadata.provider!r} at {url}"
        deadline = time.monotonic() + self._timeout
        document = _content(self._fetch(url, what, metadata.provider, deadline), what)
        try:
            return read_jwks(document), _FRESH
        except ValueError as error:
            raise ProtocolError(f"{what} cannot be read: {error}. Check the jwks_uri.") from error

    def _fetch(self, url: str, what: str, name: str, deadline: float) -> Answer:
        answer = self._back_channel.send(
            "GET",
            url,
            headers={"Accept": "application/json"},
            deadline=deadline,
            max_bytes=_MAX_BYTES,
            name=name,
        )
        if isinstance(answer, Failure):
            if answer.reason == "too_large":
                raise ProtocolError(f"{what} are larger than {_MAX_BYTES} bytes. Check the URL.")
            why = _WHY.get(answer.reason, answer.reason)
            raise ServerUnavailable(f"{what} cannot be had now: {why}.", provider=name)
        if 300 <= answer.status < 400:
            raise ServerUnavailable(
                f"{what} are somewhere else (status {answer.status}): redirects are not followed,"
                " configure the URL where they are.",
                provider=name,
            )
        if answer.status >= 500 or answer.status == 429:
            raise ServerUnavailable(
                f"{what} cannot be had now: status {answer.status}.", provider=name
            )
        return answer


def _matching(
    keys: tuple[VerificationKey, ...], kid: str | None, alg: str
) -> Iterator[VerificationKey]:
    """Give the keys of this name, then those that fit and have none; all that fit for no name."""
    if kid is not None:
        yield from (key for key in keys if key.kid == kid)
    yield from (key for key in keys if alg in key.algorithms and (key.kid is None or kid is None))


def _openid_url(issuer: str) -> str:
    return f"{issuer.removesuffix('/')}/.well-known/openid-configuration"


def _oauth_url(issuer: str) -> str:
    # RFC 8414, section 3.1: between the host and the path.
    parts = urlsplit(issuer)
    path = f"/.well-known/oauth-authorization-server{parts.path.removesuffix('/')}"
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def _lacks(document: Mapping[str, Any] | None, configured: Mapping[str, str]) -> bool:
    return document is None or any(
        not document.get(name) and name not in configured for name in _COMPLETED
    )


def _content(answer: Answer, what: str) -> dict[str, Any]:
    if answer.status != 200:
        raise ProtocolError(f"{what} are not there: status {answer.status}. Check the URL.")
    try:
        return answer.json()
    except ValueError as error:
        raise ProtocolError(f"{what} are no JSON object: {error}. Check the URL.") from error


def _check_issuer(found: object, configured: str | None, what: str) -> None:
    if found == configured:
        return
    if isinstance(found, str) and "{" in found:
        raise ProtocolError(f"{what} cannot be used: {_placeholder(found)}")
    cure = f"set the issuer to {found!r:.200}, to the letter" if found else "use another server"
    raise ProtocolError(
        f"{what} are of the issuer {found!r:.200}, configured is {configured!r}. If that is the"
        f" server you mean, {cure}; if not, check the URL."
    )


def _placeholder(issuer: str) -> str:
    return (
        f"the issuer {issuer!r:.200} has a placeholder. Configure one provider per tenant, with"
        " the tenant's own id in the issuer."
    )


def _metadata(location: ServerLocation, document: Mapping[str, Any]) -> ServerMetadata:
    known = {**document, **location.endpoints}
    endpoints = {name: known.get(name) or None for name in ENDPOINTS}
    return ServerMetadata(
        provider=location.name,
        issuer=location.issuer,
        **endpoints,
        scopes_supported=_texts(document, "scopes_supported"),
        code_challenge_methods_supported=_texts(document, "code_challenge_methods_supported"),
        id_token_signing_alg_values_supported=_texts(
            document, "id_token_signing_alg_values_supported"
        )
        or (),
        token_endpoint_auth_methods_supported=_texts(
            document, "token_endpoint_auth_methods_supported"
        ),
        authorization_response_iss_parameter_supported=document.get(
            "authorization_response_iss_parameter_supported"
        )
        is True,
        document=FrozenDict(document),
    )


def _texts(document: Mapping[str, Any], name: str) -> tuple[str, ...] | None:
    values = document.get(name)
    if not isinstance(values, list):
        return None
    return tuple(value for value in values if isinstance(value, str))


_Loaded = tuple[_T, float]  # a document, and for how many seconds it is fresh


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept(Generic[_T]):
    value: _T
    at: float
    fresh_for: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Failed:
    error: ATMError
    count: int
    until: float


class _Slot(Generic[_T]):
    """One document, kept for as long as it serves, and fetched by one thread at a time.

    There is no lock that a fork could leave held, and none that a reader could wait for: what is
    kept is replaced as a whole, and the thread that fetches is the one whose mark
    ``dict.setdefault`` has put under the id of its process.
    """

    def __init__(
        self,
        load: Callable[[], _Loaded[_T]],
        clock: Clock,
        monotonic: Callable[[], float],
        *,
        patience: float,
    ) -> None:
        self._load = load
        self._clock = clock
        self._monotonic = monotonic
        self._patience = patience
        self._kept: _Kept[_T] | None = None
        self._failed: _Failed | None = None
        self._fetching: dict[int, Event] = {}
        self._asked_again_at = -math.inf

    def peek(self) -> _T | None:
        kept = self._kept
        if kept is None or self._clock() - kept.at > max(_USABLE, kept.fresh_for):
            return None
        return kept.value

    def age(self) -> float | None:
        kept = self._kept
        return None if kept is None or kept.fresh_for == math.inf else self._clock() - kept.at

    def get(self) -> _T:
        if self._is_due():
            self._renew(self._is_due, wait=self.peek() is None)
        value = self.peek()
        if value is None:
            raise self._error()
        return value

    def newer(self, than: _T) -> _T:
        """Give a later document, or the same where it was asked for less than 30 s ago."""
        self._renew(lambda: self._may_ask_again(than), wait=True)
        kept = self._kept
        if kept is None or (kept.value is than and self._failed):
            raise self._error()
        return kept.value

    def _is_due(self) -> bool:
        kept, failed = self._kept, self._failed
        # Dated in the future (the clock was set back): nothing is known of its age.
        if kept and 0 <= self._clock() - kept.at < kept.fresh_for:
            return False
        return failed is None or self._monotonic() >= failed.until

    def _may_ask_again(self, than: _T) -> bool:
        now = self._monotonic()
        if self._kept and self._kept.value is not than:
            return False
        if now - self._asked_again_at < _REFETCH_PAUSE:
            return False
        self._asked_again_at = now
        return True

    def _renew(self, due: Callable[[], bool], *, wait: bool) -> None:
        """Fetch if that is (still) due, or leave it to whoever is at it and wait for the end."""
        process, mark = os.getpid(), Event()
        for parent in [one for one in list(self._fetching) if one != process]:
            self._fetching.pop(parent, None)  # a fork in the middle of it
        busy = self._fetching.setdefault(process, mark)
        if busy is not mark:
            if wait:
                busy.wait(self._patience)
            return
        try:
            if due():
                self._fetch()
        finally:
            del self._fetching[process]
            mark.set()

    def _fetch(self) -> None:
        try:
            value, fresh_for = self._load()
        except ATMError as error:
            self._failed = self._failure(error)
            if self._kept:
                _log.warning("%s An older copy is used.", error)
            return
        self._kept = _Kept(value=value, at=self._clock(), fresh_for=fresh_for)
        self._failed = None

    def _failure(self, error: ATMError) -> _Failed:
        count = min(self._failed.count + 1, 10) if self._failed else 0
        usable = self.peek() is not None
        pause = min(_LONGEST_PAUSE, _REFETCH_PAUSE * 2**count) if usable else min(30.0, 2.0**count)
        if isinstance(error, ConfigurationError):
            pause = 0.0
        # Without its frames, which would keep alive whatever they hold.
        bare = error.with_traceback(None)
        bare.__cause__ = bare.__context__ = None
        return _Failed(error=bare, count=count, until=self._monotonic() + pause)

    def _error(self) -> ATMError:
        """Make an exception of one's own for each caller: they may be raised at the same time."""
        failed = self._failed
        if failed is None:
            return ServerUnavailable("The metadata of the server have not come yet.")
        error = copy.copy(failed.error)
        if isinstance(error, ServerUnavailable):
            error.retry_after = max(1, math.ceil(failed.until - self._monotonic()))
        return error
