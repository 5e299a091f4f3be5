"""What an ``AuthorizedSession`` costs: a call of an API on loopback, against bare ``requests``.

Run it with ``python -m benchmarks.api_call``. The server is asyncio in another process; all
contenders take turns in one run, so that the ratios hold where the figures do not. The bare session
has ``trust_env=False`` and a static header: with the environment, ``requests`` reads all of it at
each call.
"""

import argparse
import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import requests

from flask_atm.authorized_session import AuthorizedSession
from flask_atm.connections import Connections
from flask_atm.origins import destination
from flask_atm.token_auth import Authorizer, TokenAuth
from flask_atm.tokens import AccessToken, TokenParameters

__all__: list[str] = []

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


def contenders(url: str) -> dict[str, Callable[[], object]]:
    """Give the ways to make one call; the first one is the measure."""
    source, connections = Source(), Connections()  # the kept one has its own, like every other
    header = {"Authorization": source.get(TokenParameters()).authorization}
    bare, default, kept = (
        requests.Session(),
        requests.Session(),
        AuthorizedSession(source, url),
    )
    bare.trust_env = False
    bare.headers.update(header)
    foreign = requests.Session()
    foreign.trust_env = False
    foreign.auth = TokenAuth(Authorizer(source=source), destination(url))

    def fresh() -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            return session.get(url + "me", headers=header)

    return {
        "bare Session, static header": lambda: bare.get(url + "me"),
        "the same with the environment": lambda: default.get(url + "me", headers=header),
        "a new bare Session per call": fresh,
        "AuthorizedSession, kept": lambda: kept.get("me"),
        "AuthorizedSession, made per call": lambda: AuthorizedSession(
            source, url, connections=connections
        ).get("me"),
        "bare Session, auth=TokenAuth": lambda: foreign.get(url + "me"),
    }


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Give the median of each in microseconds.

    They take turns, so that all meet the same weather, in a new order each time: who comes after
    the one that closes its connection would pay for it.
    """
    taken: dict[str, list[int]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            begun = time.perf_counter_ns()
            calls[name]()
            taken[name].append(time.perf_counter_ns() - begun)
    return {name: median(times[rounds // 10 :]) / 1000 for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3000)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
        return
    command = [sys.executable, "-m", "benchmarks.api_call", "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}/"
            results = measure(contenders(url), options.rounds)
        finally:
            server.terminate()
    first = next(iter(results.values()))
    for name, microseconds in results.items():
        print(f"{name:34} {microseconds:7.0f} us  {microseconds / first:5.2f}")


if __name__ == "__main__":
    main()
