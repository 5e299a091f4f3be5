"""Goes through the demo by itself, over HTTP, and tells what it saw."""

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import urljoin

import requests

__all__ = ["CheckFailed", "check"]

_PATIENCE: Final = 30.0
_TWENTY: Final = 20


class CheckFailed(Exception):
    """Something is not as it has to be."""


def check(url: str) -> None:
    """Do all that a visitor can do.

    :param url: of the application, with its provider and its API running.
    :raises CheckFailed: at the first thing that is not as it has to be.
    """
    with _Visitor(url) as visitor:
        for step in _STEPS:
            step(visitor)
    print("\nAll of it works.", flush=True)


class _Visitor:
    """A browser without a screen.

    :param url: of the application.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._http = requests.Session()
        self._http.trust_env = False

    def __enter__(self) -> "_Visitor":
        return self

    def __exit__(self, *error: object) -> None:
        self._http.close()

    def open(self, path: str) -> requests.Response:
        """Follow a link."""
        return self._http.get(
            urljoin(self._url, path), headers={"Accept": "text/html"}, timeout=_PATIENCE
        )

    def send(self, page: str, form: dict[str, str]) -> requests.Response:
        """Send a form from a page of the same origin."""
        origin = re.match(r"https?://[^/]+", page)
        return self._http.post(
            page,
            data=form,
            headers={"Accept": "text/html", "Origin": origin[0] if origin else ""},
            timeout=_PATIENCE,
        )

    def fetch(self, path: str, method: str = "GET") -> requests.Response:
        """Do what the page's script does."""
        return self._http.request(method, urljoin(self._url, path), timeout=_PATIENCE)

    def get(self, path: str, method: str = "GET") -> dict[str, Any]:
        """Do it where nothing may go wrong, and give the answer."""
        answer = self.fetch(path, method)
        _expect(answer.ok, f"{method} {path} answered {answer.status_code}: {answer.text[:300]}")
        found: dict[str, Any] = answer.json() if answer.content else {}
        return found

    def status(self) -> dict[str, Any]:
        """Give what the page shows of the scenes behind it."""
        return self.get("backstage/status")

    def wait_for_expiry(self) -> None:
        """Come back at the moment at which the token's life ends."""
        time.sleep(self.get("token")["expires_in"])

    def page(self, path: str) -> str:
        """Give an address of the application."""
        return urljoin(self._url, path)


def _sign_in(visitor: _Visitor) -> None:
    page = visitor.open("oidc/login")
    _expect("Alice Adams" in page.text, "the provider does not ask who it is")
    page = visitor.send(page.url, {"user": "alice"})
    _expect(page.url == visitor.page(""), f"the sign-in ended at {page.url}: {page.status_code}")
    _expect("Alice Adams" in page.text, "the page does not say who is signed in")
    _tell("sign in", "Alice Adams is signed in")


def _see_the_token(visitor: _Visitor) -> None:
    first, second = visitor.get("token"), visitor.get("token")
    _expect(second["expires_in"] < first["expires_in"], "the countdown does not move")
    _tell(
        "token",
        f"{first['type']}, {first['expires_in']:.1f} s left, for {' '.join(first['scope'])};"
        f" fingerprint {first['fingerprint']}",
    )


def _call(visitor: _Visitor) -> None:
    seen = visitor.get("call")
    _expect(seen["status"] == 200, f"the API answered {seen['status']}")
    _tell("call", f"the API answered 200 to {seen['answer']['name']}")


def _break_the_token(visitor: _Visitor) -> None:
    # A token that was refused within its first second is not renewed: the API may be at fault.
    time.sleep(1.1)
    before, broken = visitor.status(), visitor.get("token")["fingerprint"]
    visitor.get("backstage/break", "POST")
    seen = visitor.get("call")
    after, renewed = visitor.status(), visitor.get("token")["fingerprint"]
    _expect(seen["status"] == 200, f"the API answered {seen['status']} to a broken token")
    _expect(renewed != broken, "the broken token is still in use")
    _expect_refreshes(before, after, 1)
    _expect(_in_log(after, "api", "answered 401"), "the API's 401 is not in the log")
    _expect(_in_log(after, "signal", "was renewed"), "the renewal is not in the log")
    _tell("break", f"401 from the API, one refresh, 200; fingerprint {broken} -> {renewed}")


def _twenty_requests(visitor: _Visitor) -> None:
    visitor.wait_for_expiry()
    before = visitor.status()
    with ThreadPoolExecutor(_TWENTY) as threads:
        seen = list(threads.map(lambda _: visitor.fetch("call"), range(_TWENTY)))
    good = sum(answer.ok and answer.json()["status"] == 200 for answer in seen)
    _tell_of_twenty("requests", before, visitor.status(), good)


def _twenty_threads(visitor: _Visitor) -> None:
    visitor.wait_for_expiry()
    before = visitor.status()
    statuses = visitor.get("twenty", "POST")["statuses"]
    _tell_of_twenty("threads", before, visitor.status(), statuses.count(200))


def _tell_of_twenty(what: str, before: dict[str, Any], after: dict[str, Any], good: int) -> None:
    _expect(good == _TWENTY, f"{good} of {_TWENTY} {what} were answered with 200")
    _expect_refreshes(before, after, 1)
    _expect(after["replays"] == 0, "a refresh token was sent twice")
    _tell(f"20 {what}", f"at the moment of expiry: {good} times 200, one refresh")


def _stop_the_provider(visitor: _Visitor) -> None:
    left, calls = visitor.get("token")["expires_in"], 0
    visitor.get("backstage/stop", "POST")
    for answer in _calls(visitor, left + _PATIENCE):
        if answer.status_code != 200:
            break
        calls += 1
    _expect(calls > 0, "no call went on after the provider had stopped")
    _expect(answer.status_code == 503, f"{answer.status_code} instead of 503: {answer.text[:300]}")
    kind, pause = answer.headers["Content-Type"], answer.headers.get("Retry-After", "")
    _expect(kind == "application/problem+json", f"the 503 is {kind}")
    _expect(pause.isdigit() and int(pause) > 0, f"the 503 has Retry-After {pause!r}")
    _tell("provider stops", f"{calls} calls go on, then 503 with Retry-After: {pause}")


def _start_the_provider(visitor: _Visitor) -> None:
    before = visitor.status()
    visitor.get("backstage/start", "POST")
    started = time.monotonic()
    for answer in _calls(visitor, _PATIENCE):
        if answer.status_code == 200:
            break
    _expect_refreshes(before, visitor.status(), 1)
    _tell("provider starts", f"200 again after {time.monotonic() - started:.1f} s, one refresh")


def _get_a_client_token(visitor: _Visitor) -> None:
    first, second = visitor.get("client-token"), visitor.get("client-token")
    _expect(first["fingerprint"] == second["fingerprint"], "the client token is not cached")
    asked = visitor.status()["client_tokens"]
    _expect(asked == 1, f"the provider was asked {asked} times for a client token")
    _tell(
        "client token",
        f"{first['type']}, for {' '.join(first['scope'])}; the second time from the cache",
    )


def _sign_out(visitor: _Visitor) -> None:
    page = visitor.send(visitor.page("oidc/logout"), {})
    _expect(page.url == visitor.page(""), f"the sign-out ended at {page.url}: {page.status_code}")
    _expect("Alice Adams" not in page.text, "the page still says that Alice is signed in")
    answer = visitor.fetch("token")
    _expect(answer.status_code == 401, f"{answer.status_code} after the sign-out, not 401")
    _expect("login_url" in answer.json(), "the 401 does not say where to sign in")
    revoked = visitor.status()["revocations"]
    _expect(revoked > 0, "the refresh token was not revoked")
    _tell("sign out", "signed out here and at the provider, and the refresh token is revoked")


_STEPS: Final = (
    _sign_in,
    _see_the_token,
    _call,
    _break_the_token,
    _twenty_requests,
    _twenty_threads,
    _stop_the_provider,
    _start_the_provider,
    _get_a_client_token,
    _sign_out,
)


def _calls(visitor: _Visitor, patience: float) -> Iterator[requests.Response]:
    """Call again and again, but not for ever."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        yield visitor.fetch("call")
        time.sleep(0.2)
    raise CheckFailed(f"this does not come to an end within {patience:.0f} s")


def _expect(condition: bool, complaint: str) -> None:
    if not condition:
        raise CheckFailed(complaint)


def _expect_refreshes(before: dict[str, Any], after: dict[str, Any], expected: int) -> None:
    seen = after["refreshes"] - before["refreshes"]
    _expect(seen == expected, f"the provider saw {seen} refreshes, not {expected}")


def _in_log(status: dict[str, Any], source: str, words: str) -> bool:
    return any(entry["source"] == source and words in entry["text"] for entry in status["log"])


def _tell(step: str, seen: str) -> None:
    print(f"ok  {step:<16}{seen}", flush=True)
