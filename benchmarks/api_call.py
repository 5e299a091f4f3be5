"""What an ``AuthorizedSession`` costs: a call of an API on loopback, against bare ``requests``.

Run it with ``python -m benchmarks.api_call``. The server is asyncio in another process; each
contender takes turns with the bare session, so that the ratios hold where the figures do not. The
bare session has ``trust_env=False`` and a static header: with the environment, ``requests`` reads
all of it at each call.
"""

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import requests
from flask import Flask

from benchmarks.setting import signed_in
from flask_atm import ATM
from flask_atm.authorized_session import AuthorizedSession
from flask_atm.calls.connections import Connections
from flask_atm.calls.origins import destination
from flask_atm.calls.token_auth import Authorizer, TokenAuth
from flask_atm.globals import forget_looked_up
from flask_atm.tokens import AccessToken, TokenParameters

__all__ = ["measure"]

ROOT = Path(__file__).parent.parent
LIMITS = {
    "atm.user_session(…) in a view": 1.10,
    "atm.api(…) in a view": 1.10,
    "AuthorizedSession, made per call": 1.10,
}
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n"
    b'{"hello": "me"}'
)


class Echo(asyncio.Protocol):
    """Answers each request with the same bytes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"\r\n\r\n") and isinstance(self._transport, asyncio.Transport):
            self._transport.write(ANSWER)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class Source:
    """A token in memory."""

    def __init__(self) -> None:
        self._token = AccessToken(value="t" * 900, expires_at=time.time() + 3600)

    def get(
        self,
        parameters: TokenParameters,
        *,
        rejected: str | None = None,
        deadline: float | None = None,
    ) -> AccessToken:
        return self._token


def contenders(
    url: str, app: Flask
) -> tuple[Callable[[], object], dict[str, Callable[[], object]]]:
    """Give the measure, and the ways to make one call that are measured by it.

    :param app: in a request of whose signed-in user the calls are made: over SQLite, sealed.
    """
    atm: ATM = app.extensions["atm"]
    invoices = atm.api("echo")
    source, connections = Source(), Connections()  # the kept one has its own, like every other
    header = {"Authorization": source.get(TokenParameters()).authorization}
    bare, another, default = requests.Session(), requests.Session(), requests.Session()
    for session in (bare, another):
        session.trust_env = False
        session.headers.update(header)
    kept = AuthorizedSession(source, url)
    foreign = requests.Session()
    foreign.trust_env = False
    foreign.auth = TokenAuth(Authorizer(source=source), destination(url))

    def fresh() -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            return session.get(url + "me", headers=header)

    def first_in_a_view() -> requests.Response:
        forget_looked_up()
        return atm.user_session(url).get("me")

    return lambda: bare.get(url + "me"), {
        "atm.user_session(…) in a view": lambda: atm.user_session(url).get("me"),
        "atm.api(…) in a view": lambda: invoices.get("me"),
        "the same, grant read anew": first_in_a_view,
        "another bare Session": lambda: another.get(url + "me"),
        "a bare one with the environment": lambda: default.get(url + "me", headers=header),
        "a new bare Session per call": fresh,
        "AuthorizedSession, kept": lambda: kept.get("me"),
        "AuthorizedSession, made per call": lambda: AuthorizedSession(
            source, url, connections=connections
        ).get("me"),
        "bare Session, auth=TokenAuth": lambda: foreign.get(url + "me"),
    }


def _in_turns(
    bare: Callable[[], object], call: Callable[[], object], rounds: int
) -> tuple[float, float]:
    """Give the medians of both in microseconds; they take turns, in a new order each time."""
    taken: dict[Callable[[], object], list[int]] = {bare: [], call: []}
    order = list(taken)
    for _ in range(rounds):
        random.shuffle(order)
        for one in order:
            begun = time.perf_counter_ns()
            one()
            taken[one].append(time.perf_counter_ns() - begun)
    first, second = (median(times[rounds // 10 :]) / 1000 for times in taken.values())
    return first, second


def measure(rounds: int = 3000) -> list[tuple[str, float, float]]:
    """Give ``(what, ratio, limit)``."""
    ratios = {}
    command = [sys.executable, "-m", "benchmarks.api_call", "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}/"
            with signed_in(ATM_APIS={"echo": {"base_url": url}}) as (app, _, _):
                bare, calls = contenders(url, app)
                for name, call in calls.items():
                    first, second = _in_turns(bare, call, rounds)
                    ratios[name] = second / first
                    print(f"  {name:32} {second:5.0f} us, bare {first:5.0f}: {ratios[name]:5.2f}")
        finally:
            server.terminate()
    return [(f"{name} / bare", ratios[name], limit) for name, limit in LIMITS.items()]


if __name__ == "__main__":
    if "--serve" in sys.argv:
        asyncio.run(serve())
    else:
        for what, ratio, limit in measure():
            print(f"{what}: {ratio:.2f} (limit {limit})")
