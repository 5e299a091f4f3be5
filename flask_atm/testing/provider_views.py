"""The pages and endpoints of the fake provider."""

from typing import Any, Final

from authlib.common.urls import add_params_to_uri
from authlib.oauth2 import OAuth2Error
from flask import Flask, Response, jsonify, redirect, render_template, request
from werkzeug.wrappers import Response as AnyResponse

from flask_atm.testing.bearer import bearer_token, insufficient_scope, invalid_token
from flask_atm.testing.provider_grants import AUTH_METHODS
from flask_atm.testing.provider_records import Session
from flask_atm.testing.provider_server import SCOPES, Issuer, Server
from flask_atm.testing.provider_storage import Storage
from flask_atm.testing.provider_tokens import ALGORITHM, SigningKey, own_claims

__all__ = ["ENDPOINTS", "create_app"]

#: Path by endpoint: the names that faults and records go by.
ENDPOINTS: Final = {
    "authorize": "/authorize",
    "discovery": "/.well-known/openid-configuration",
    "end_session": "/end-session",
    "introspect": "/introspect",
    "jwks": "/jwks",
    "revoke": "/revoke",
    "token": "/token",
    "userinfo": "/userinfo",
}
_METHODS: Final = {
    "authorize": ("GET", "POST"),
    "end_session": ("GET", "POST"),
    "introspect": ("POST",),
    "revoke": ("POST",),
    "token": ("POST",),
    "userinfo": ("GET", "POST"),
}


def create_app(storage: Storage, issuer: str, key: SigningKey) -> Flask:
    """Make the provider's application.

    :param key: signs ID tokens.
    """
    app = Flask(__name__, static_folder=None)
    views = _Views(Server(app, storage, issuer, key), storage, key)
    for name, path in ENDPOINTS.items():
        app.add_url_rule(path, name, getattr(views, name), methods=_METHODS.get(name, ("GET",)))
    app.add_url_rule("/.well-known/oauth-authorization-server", "discovery", views.discovery)
    return app


class _Views:
    """One method per endpoint."""

    def __init__(self, server: Server, storage: Storage, key: SigningKey) -> None:
        self._server = server
        self._storage = storage
        self._rules = storage.rules
        self._issuer: str = server.issuer
        self._key = key
        # Cookies do not know ports: two providers on one host must not share one.
        self._cookie = "fake_provider_" + self._issuer.rpartition(":")[2]

    def discovery(self) -> Response:
        """OpenID Connect Discovery 1.0, and RFC 8414."""
        at = {name: self._issuer + path for name, path in ENDPOINTS.items()}
        return jsonify(
            issuer=self._issuer,
            authorization_endpoint=at["authorize"],
            token_endpoint=at["token"],
            jwks_uri=at["jwks"],
            userinfo_endpoint=at["userinfo"],
            revocation_endpoint=at["revoke"],
            introspection_endpoint=at["introspect"],
            end_session_endpoint=at["end_session"],
            scopes_supported=[*SCOPES, *(self._rules.scopes or ())],
            response_types_supported=["code"],
            response_modes_supported=["query"],
            grant_types_supported=["authorization_code", "refresh_token", "client_credentials"],
            subject_types_supported=["public"],
            id_token_signing_alg_values_supported=[ALGORITHM],
            code_challenge_methods_supported=["S256"],
            prompt_values_supported=["none", "login", "select_account"],
            authorization_response_iss_parameter_supported=True,
            token_endpoint_auth_methods_supported=AUTH_METHODS,
            revocation_endpoint_auth_methods_supported=AUTH_METHODS,
            introspection_endpoint_auth_methods_supported=AUTH_METHODS[:2],
        )

    def jwks(self) -> Response:
        """The public key."""
        return jsonify(keys=[self._key.as_dict(private=False)])

    def token(self) -> AnyResponse:
        """RFC 6749, section 3.2: one request at a time, as if each were one transaction."""
        with self._storage.lock:
            return self._server.create_token_response()  # type: ignore[no-any-return]

    def revoke(self) -> AnyResponse:
        """RFC 7009."""
        return self._server.create_endpoint_response("revocation")  # type: ignore[no-any-return]

    def introspect(self) -> AnyResponse:
        """RFC 7662."""
        return self._server.create_endpoint_response("introspection")  # type: ignore[no-any-return]

    def userinfo(self) -> Response:
        """OpenID Connect Core, section 5.3."""
        token = self._storage.access_token(bearer_token() or "")
        session = token.get_user() if token else None
        if token is None or session is None:
            return invalid_token()
        if "openid" not in token.scope.split():
            return insufficient_scope("openid")
        return jsonify(session.user.claims_for(token.scope))

    def authorize(self) -> AnyResponse | str:
        """RFC 6749, section 3.1: sign-in page, or straight back."""
        session = self._session()
        try:
            grant = self._server.get_consent_grant(end_user=session)
        except OAuth2Error as error:
            return self._authorization_error(error)
        if request.method == "POST":
            user = self._storage.users.get(request.form.get("user", ""))
            return self._send_back(grant, self._storage.open_session(user) if user else None)
        if session is not None:
            return self._send_back(grant, session)
        return self._sign_in_page(grant)

    def _session(self) -> Session | None:
        """Give who is signed in at the provider; with ``auto_approve`` somebody always is."""
        hint = self._storage.user_for(request.values.get("login_hint"))
        session = self._storage.sessions.get(request.cookies.get(self._cookie, ""))
        if session is not None and (self._asked_again(session) or hint not in (None, session.user)):
            session = None
        if self._rules.auto_approve and request.method == "GET":
            user = hint or self._storage.users[self._rules.user]
            if session is None or session.user != user:
                session = self._storage.open_session(user)
        return session

    def _asked_again(self, session: Session) -> bool:
        """Whether the application wants a new sign-in although there is this session."""
        if {"login", "select_account"} & set(request.values.get("prompt", "").split()):
            return True
        age = self._storage.clock() - session.auth_time
        return age > request.values.get("max_age", age, type=float)

    def _send_back(self, grant: Any, session: Session | None) -> AnyResponse:
        response: AnyResponse = self._server.create_authorization_response(
            grant_user=session, grant=grant
        )
        if request.method == "POST":
            response.status_code = 303
        if session is not None:
            response.set_cookie(self._cookie, session.sid, httponly=True, samesite="Lax")
        return response

    def _authorization_error(self, error: Any) -> AnyResponse:
        response: AnyResponse = self._server.handle_error_response(request, error)
        if not response.location:  # never to a redirect URI that is not the client's
            return _page("error.html", 400, error=error.error, text=error.get_error_description())
        Issuer(self._issuer).add_issuer_parameter(self._server, response)
        return response

    def _sign_in_page(self, grant: Any) -> AnyResponse:
        return _page(
            "sign_in.html",
            client=grant.client.client_id,
            scopes=(grant.request.scope or "").split(),
            users=self._storage.users.values(),
            hinted=self._storage.user_for(request.values.get("login_hint")),
        )

    def end_session(self) -> AnyResponse:
        """OpenID Connect RP-Initiated Logout 1.0."""
        data = request.values
        hint = data.get("id_token_hint")
        claims = own_claims(self._key, self._issuer, hint) if hint else {}
        client_id = data.get("client_id") or claims.get("aud", "")
        if hint and claims.get("aud") != client_id:
            return _page("error.html", 400, error="invalid_request", text="Not our ID token.")
        if not hint and request.method == "GET" and not self._rules.auto_approve:
            return _page("sign_out.html", client=client_id, done=False)
        for sid in (request.cookies.get(self._cookie, ""), claims.get("sid", "")):
            self._storage.sessions.pop(sid, None)
        response = self._signed_out(client_id)
        response.delete_cookie(self._cookie)
        return response

    def _signed_out(self, client_id: str) -> AnyResponse:
        client = self._storage.clients.get(client_id)
        target = request.values.get("post_logout_redirect_uri")
        if client is None or target not in client.redirect_uris:
            return _page("sign_out.html", client=client_id, done=True)
        state = request.values.get("state")
        return redirect(add_params_to_uri(target, {"state": state}) if state else str(target))


def _page(template: str, status: int = 200, **values: Any) -> Response:
    return Response(
        render_template(template, **values), status, headers={"Cache-Control": "no-store"}
    )
