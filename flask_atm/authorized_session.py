"""A ``requests.Session`` whose every request carries a valid token to the right place."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, Never, Self

import requests
from requests.adapters import BaseAdapter
from requests.cookies import RequestsCookieJar
from requests.hooks import dispatch_hook
from requests.models import DEFAULT_REDIRECT_LIMIT
from requests.structures import CaseInsensitiveDict
from requests.utils import default_headers

from flask_atm.calls.connections import Connections
from flask_atm.calls.exchanges import TimeLeft
from flask_atm.calls.origins import destination
from flask_atm.calls.token_auth import Authorizer, Body, Call
from flask_atm.errors import OriginNotAllowed
from flask_atm.oauth.attempts import Budget
from flask_atm.protocols import Customizer, TokenSource
from flask_atm.tokens import AccessToken, TokenParameters

__all__ = ["AuthorizedSession"]

_NO_PARAMETERS: Final = TokenParameters()
_RENEWING: Final = Budget()
_NOT_RENEWING: Final = Budget(renewals=0)
_CURES: Final = {
    "authorization": "the session puts the token on by itself: leave it out, or use with_token(…)",
    "dpop": "the session makes the proof by itself: leave it out",
    "cookie": "the session sends no cookies: leave out cookies= and the header",
    "host": "the token goes where the URL says: leave it out",
}
_NO_HOOKS: Final[dict[str, list[Any]]] = {"response": []}
# A request that was sent before, such as response.request, has the header from us.
_OURS: Final = type(AccessToken(value="", expires_at=0).authorization)


class _Headers(CaseInsensitiveDict[str]):
    """Headers that every session starts with, copied as a whole: one by one takes five times as
    long."""

    _store: OrderedDict[str, tuple[str, str]]

    def copy(self) -> "_Headers":
        made = _Headers.__new__(_Headers)
        made._store = self._store.copy()
        return made


_DEFAULT_HEADERS: Final = _Headers(default_headers())


class _NoCookies(RequestsCookieJar):
    """Keeps nothing, so that all sessions can share it, and no user's cookie meets another's."""

    def extract_cookies(self, response: Any, request: Any) -> None:
        pass

    def set_cookie(self, cookie: Any, *args: Any, **kwargs: Any) -> Never:
        raise ValueError("An AuthorizedSession keeps no cookies: use a session of your own.")


_NO_COOKIES: Final = _NoCookies()


class _SharedWhenMade(type):
    """Ends the construction of a session: only here it is known that no constructor still runs."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        session = super().__call__(*args, **kwargs)
        session._share()
        return session


class AuthorizedSession(requests.Session, metaclass=_SharedWhenMade):
    """A session for one API: it gets the token, puts it on, and renews it once on 401.

    Cheap to make: one per request that Flask serves, or per job, not shared by threads. What is
    expensive, its connections, belongs to the application.

    Subclass it for a typed client. Adapters of your own are mounted in the constructor of a
    subclass; those of the first instance are then used by all.

    :param source: gives the tokens.
    :param base_url: of the API; counts as ending in ``/``. A relative URL, also with a leading
        ``/``, is appended and cannot leave that path.
    :param parameters: what is asked of the source.
    :param allowed_origins: further origins that the token may go to; plain http only here.
    :param customizer: changes the parameters by the request that is about to be sent.
    :param timeout: seconds in total for all that the API does in one call, the body included
        (with ``stream=True`` until its head is there). Getting the token is not part of it.
    :param renew_on_401: whether a refused token is renewed, and the request sent once more.
    :param connections: those of the application; for the extension.
    :param api: the name in ``ATM_APIS``; for the extension.
    :raises ValueError: for a ``base_url`` or an origin that is none.
    :raises OriginNotAllowed: for plain http to another host.
    """

    auth: Any = None
    cert: Any = None
    cookies = _NO_COOKIES
    max_redirects = DEFAULT_REDIRECT_LIMIT
    stream = False
    trust_env = False
    verify: bool | str | None = True

    def __init__(
        self,
        source: TokenSource,
        base_url: str,
        *,
        parameters: TokenParameters = _NO_PARAMETERS,
        allowed_origins: Iterable[str] = (),
        customizer: Customizer | None = None,
        timeout: float = 10,
        renew_on_401: bool = True,
        connections: Connections | None = None,
        api: str | None = None,
    ) -> None:
        if customizer is not None and not callable(customizer):
            raise TypeError(f"customizer has to be callable, not {type(customizer).__name__}")
        if not timeout > 0:
            raise ValueError("timeout has to be a number of seconds greater than 0")
        self._destination = destination(base_url, _as_tuple(allowed_origins))
        self._authorizer = Authorizer(
            source=source, parameters=parameters, customizer=customizer, api=api
        )
        self._timeout = timeout
        self._budget = _RENEWING if renew_on_401 else _NOT_RENEWING
        self._connections = connections or Connections()
        self._owns_connections = connections is None
        self._mounted: dict[str, BaseAdapter] | None = {}
        # Not super().__init__(): it would make connection pools, at many times the cost of all
        # this. Its other attributes are those of the class.
        self.headers: Any = _DEFAULT_HEADERS.copy()
        self.hooks = {"response": []}
        self.params = {}
        self.proxies = {}

    def _share(self) -> None:
        shared = self._connections.adapters(type(self), self._mounted)
        self.adapters = shared  # type: ignore[assignment]  # read only, on purpose
        self._mounted = None

    @property
    def base_url(self) -> str:
        """The base URL, in its normal form; it ends in ``/``."""
        return self._destination.base

    def mount(self, prefix: str | bytes, adapter: BaseAdapter) -> None:
        """Use an adapter for URLs with a prefix, for all sessions of this class.

        :raises RuntimeError: outside the constructor of a subclass.
        """
        if self._mounted is None:
            raise RuntimeError(
                "The connections of a session are shared by the whole application: mount adapters"
                " in the __init__ of a subclass of AuthorizedSession, after super().__init__(…)."
            )
        self._mounted[prefix.decode() if isinstance(prefix, bytes) else prefix] = adapter

    def close(self) -> None:
        """Close the connections, unless they are the application's."""
        if self._owns_connections:
            self._connections.close()

    def with_token(self, **parameters: Any) -> Self:
        """Give this session with other parameters, for one call: ``with_token(scope="admin")``.

        :param parameters: fields of :class:`~flask_atm.TokenParameters`.
        """
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view._authorizer = replace(
            self._authorizer, parameters=self._authorizer.parameters.replace(**parameters)
        )
        return view

    def __reduce__(self) -> Never:
        raise TypeError("sessions are never pickled: make one where it is used")

    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        """Make what will be sent, but for the token; its URL is checked.

        :raises OriginNotAllowed: the token must not go there.
        :raises ValueError: for ``auth=``; headers of the caller's own are refused when it is sent.
        """
        if request.auth is not None or self.auth is not None:
            raise ValueError(f"auth= has no place here: {_CURES['authorization']}.")
        given = request.url
        request.url, relative = self._destination.resolve(given)
        try:
            prepared = super().prepare_request(request)
        except requests.exceptions.InvalidURL:
            raise OriginNotAllowed("The URL has no valid host: nothing was sent.") from None
        finally:
            request.url = given
        self._destination.check(prepared.url or "", inside=relative)
        return prepared

    def merge_environment_settings(  # type: ignore[override]  # the stub's TypedDict is not there
        self,
        url: str | bytes | None,
        proxies: Mapping[str, str] | None,
        stream: bool | None,
        verify: bool | str | None,
        cert: str | tuple[str, str] | None,
    ) -> dict[str, Any]:
        """Merge settings of a call and the session; the environment's come with :meth:`send`."""
        return {
            "proxies": {**self.proxies, **(proxies or {})} or None,
            "stream": self.stream if stream is None else stream,
            "verify": self.verify if verify is None else verify,
            "cert": self.cert if cert is None else cert,
        }

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send a prepared request with a token, and follow its redirects.

        :raises OriginNotAllowed: it, or the redirect that would be followed next, leads astray.
        :raises InsufficientScope: the API wants a token that can do more.
        :raises StepUpRequired: the API wants the user to sign in again.
        :raises requests.RequestException: as from any session.
        """
        follow = options.pop("allow_redirects", True)
        call = Call(self._authorizer, self._budget)
        time = TimeLeft(self._timeout, options.pop("timeout", None))
        response = self._answer(request, call, time, options)
        history: list[requests.Response] = []
        while follow and response.next is not None:
            if len(history) >= self.max_redirects:
                raise requests.TooManyRedirects(
                    f"Exceeded {self.max_redirects} redirects.", response=response
                )
            if not Body(response.next.body).repeatable:
                raise requests.exceptions.UnrewindableBodyError(
                    "The API redirects a request whose body cannot be sent twice: send a file or"
                    " bytes, or send it to the right URL."
                )
            history.append(response)
            response = self._answer(response.next, call, time, options)
            response.history = history[:]
        return response

    def _answer(
        self, request: requests.PreparedRequest, call: Call, time: TimeLeft, options: dict[str, Any]
    ) -> requests.Response:
        """Send one request, and once more if its token was refused."""
        origin = self._destination.check(request.url or "")
        _refuse_own_headers(request)
        settings = self._settings(origin, options)
        body = Body(request.body)
        # Hooks see what the caller sees: one that raises for a 401 must not be in the way of the
        # renewal.
        hooks, request.hooks = request.hooks, _NO_HOOKS
        try:
            call.authorize(request)
            response = self._exchange(request, time, settings)
            while time.seconds > 0 and call.renewed(response, request, body):
                call.authorize(request)
                response = self._exchange(request, time, settings)
        finally:
            request.hooks = hooks
        if response.next is not None:
            response.next.hooks = hooks
        answer: requests.Response = dispatch_hook("response", hooks, response, **settings)  # type: ignore[no-untyped-call]
        return answer

    def _settings(self, origin: str, options: dict[str, Any]) -> dict[str, Any]:
        """Complete the options of a sending by what the environment says of an origin."""
        route = self._connections.route(origin)
        verify = options.get("verify", self.verify)
        if verify is False:
            raise ValueError(
                "verify=False would show the token to everybody on the way: give the CA bundle of"
                " the API instead."
            )
        proxies = options.get("proxies") or self.proxies or route.proxies
        verify = route.verify if verify in (None, True) else verify
        return {**options, "proxies": proxies, "verify": verify}

    def _exchange(
        self, request: requests.PreparedRequest, time: TimeLeft, settings: dict[str, Any]
    ) -> requests.Response:
        with time, self._connections.exchange(time.seconds):
            return super().send(request, allow_redirects=False, timeout=time.limits(), **settings)

    def rebuild_auth(
        self, prepared_request: requests.PreparedRequest, response: requests.Response
    ) -> None:
        """Take off what the redirected request has of the one before: a new token follows."""
        for name in _CURES:
            prepared_request.headers.pop(name, None)


def _refuse_own_headers(request: requests.PreparedRequest) -> None:
    for name, value in request.headers.items():
        cure = _CURES.get(name.lower())
        if cure is not None and not isinstance(value, _OURS):
            raise ValueError(f"An own {name} header has no place here: {cure}.")


def _as_tuple(origins: str | Iterable[str]) -> tuple[str, ...]:
    return (origins,) if isinstance(origins, str) else tuple(origins)
