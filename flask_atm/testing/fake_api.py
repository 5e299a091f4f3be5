"""A protected API in this process, for tests and demonstrations."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from flask import Flask, Response, g, jsonify, request

from flask_atm.testing.bearer import bearer_token, insufficient_scope, invalid_token, refuse
from flask_atm.testing.fake_server import FakeServer
from flask_atm.testing.faults import Body, Fault, Hold, install

__all__ = ["APICall", "FakeAPI", "Introspection"]

_METHODS: Final = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_ENDPOINT: Final = "api"


class Introspection(Protocol):
    """Where an API looks tokens up, such as a :class:`FakeProvider`."""

    def introspect(self, token: str) -> dict[str, Any]:
        """Give what is known about a token (RFC 7662)."""
        ...

    def revoke(self, token: str) -> None:
        """Revoke a token."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class APICall:
    """A call that the API has seen, without its token.

    :param status: of the answer; ``None``: the connection was cut.
    :param sub: whose token it was; ``None`` if it was not good.
    :param body: what was sent.
    """

    method: str
    path: str
    status: int | None
    sub: str | None
    body: bytes = field(repr=False)


class FakeAPI(FakeServer):
    """An API on 127.0.0.1 that wants a good token of a provider; a context manager.

    ::

        with FakeProvider() as provider, FakeAPI(provider) as api:
            app.config.update(provider.settings())
            app.config["ATM_APIS"] = {"invoices": {"base_url": api.base_url}}

    Every path answers with JSON: whose token it was (``sub``, ``name``, ``client_id``), its
    ``scope`` and ``audience``, ``method``, ``path``, and ``calls``, the number of the call. Without
    a good token it is 401 with a challenge. ``/slow?ms=200`` takes its time, and
    ``/insufficient_scope?scope=admin`` is 403 for tokens without that scope. Thread-safe.

    :param provider: who knows the tokens.
    :param audience: what a token has to name among its audience; anything if left out.
    :param port: the port; chosen by the system if left out.
    """

    def __init__(
        self, provider: Introspection, *, audience: str | None = None, port: int = 0
    ) -> None:
        app = Flask(__name__, static_folder=None)
        super().__init__(app, port=port)
        self._provider = provider
        self._audience = audience
        self._calls: list[APICall] = []
        install(app, self._faults, self._record)
        for rule in ("/", "/<path:path>"):
            app.add_url_rule(rule, _ENDPOINT, self._answer, methods=_METHODS)

    @property
    def base_url(self) -> str:
        """``http://127.0.0.1:port/``."""
        return self._http.url + "/"

    @property
    def calls(self) -> list[APICall]:
        """All calls so far, in the order of their answers."""
        return self._calls.copy()

    def refuse(self, times: int | None = 1) -> None:
        """Answer the next calls with 401 ``invalid_token``, however good their token is."""
        challenge = 'Bearer error="invalid_token", error_description="As the test asked for."'
        self.fail(
            status=401,
            times=times,
            body={"error": "invalid_token"},
            headers={"WWW-Authenticate": challenge},
        )

    def fail(
        self,
        status: int | None = 503,
        times: int | None = 1,
        *,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
        delay: float = 0.0,
    ) -> None:
        """Let the next calls fail: parameters as in :meth:`FakeProvider.fail`."""
        self._faults.add(
            Fault(
                endpoint=_ENDPOINT,
                status=status,
                times=times,
                body=body,
                headers=headers or {},
                delay=delay,
            )
        )

    def hold(self) -> Hold:
        """Hold back all answers, as :meth:`FakeProvider.hold` does."""
        return self._faults.hold(_ENDPOINT)

    def revoke(self, token: str) -> None:
        """Revoke a token at the provider."""
        self._provider.revoke(token)

    def _answer(self, path: str = "") -> Response:
        given = bearer_token()
        if given is None:
            return refuse(401)
        token = self._provider.introspect(given)
        if not token["active"] or self._audience not in (None, *token.get("aud", ())):
            return invalid_token()
        g.sub = token["sub"]
        scope = request.args.get("scope", "admin")
        if path == "insufficient_scope" and scope not in token["scope"].split():
            return insufficient_scope(scope)
        if path == "slow":
            self._faults.pause(request.args.get("ms", 1000.0, type=float) / 1000)
        return self._tell(token)

    def _tell(self, token: Mapping[str, Any]) -> Response:
        return jsonify(
            sub=token["sub"],
            name=token.get("username"),
            client_id=token["client_id"],
            scope=token["scope"],
            audience=token.get("aud", []),
            method=request.method,
            path=request.path,
            calls=len(self._calls) + 1,
        )

    def _record(self, status: int | None) -> None:
        self._calls.append(
            APICall(
                method=request.method,
                path=request.full_path.rstrip("?"),
                status=status,
                sub=g.get("sub"),
                body=request.get_data(),
            )
        )
