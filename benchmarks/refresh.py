"""What a refresh costs on top of its request: operations of the store, and time.

Run it with ``python -m benchmarks.refresh``. The token endpoint is an asyncio server in another
process; the bare request goes over the same back channel, with a fresh connection too.
"""

import asyncio
import json
import re
import subprocess
import sys
import time
from typing import Any

from benchmarks.setting import interleaved, signed_in
from flask_atm.tokens import TokenParameters

__all__ = ["measure"]

BODY = json.dumps(
    {"access_token": "a" * 1000, "token_type": "Bearer", "expires_in": 3600, "refresh_token": "r"}
).encode()
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


class TokenEndpoint(asyncio.Protocol):
    """Answers each request with the same tokens."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._read = b""

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, found, body = self._read.partition(b"\r\n\r\n")
        if not found or not isinstance(self._transport, asyncio.Transport):
            return
        length = re.search(rb"content-length: *(\d+)", head.lower())
        if length and len(body) >= int(length[1]):
            self._transport.write(ANSWER)
            self._transport.close()


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(TokenEndpoint, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class Counted:
    """Counts the calls of a store."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.calls.append(name)
        return getattr(self._store, name)


def measure() -> list[tuple[str, float, float]]:
    """Give ``(what, figure, limit)``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.refresh", "--serve"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    url = f"http://127.0.0.1:{process.stdout.readline().strip()}/token"
    endpoints = {"ATM_TOKEN_ENDPOINT": url, "ATM_AUTHORIZATION_ENDPOINT": url}
    endpoints |= {"ATM_ISSUER": None, "ATM_SIGN_IN": False, "ATM_SCOPE": "read"}  # type: ignore[dict-item]
    try:
        with signed_in(**endpoints) as (_, state, grant_id):
            return _measure(state, grant_id)
    finally:
        process.terminate()
        process.wait(10)


def _measure(state: Any, grant_id: str) -> list[tuple[str, float, float]]:
    provider = state.provider()
    counted = Counted(state.store)
    tokens = provider.tokens
    object.__setattr__(tokens.vault, "store", counted)
    object.__setattr__(tokens.engine.refresher, "_store", counted)
    tokens.get(grant_id, TokenParameters())
    fresh_calls = len(counted.calls)
    counted.calls.clear()
    tokens.get(grant_id, TokenParameters(force_renewal=True))
    more_calls = len(counted.calls) - fresh_calls
    print(f"  a fresh token: {fresh_calls} call; a refresh: {counted.calls}")
    form = {"grant_type": "refresh_token", "refresh_token": "r"}

    def bare() -> None:
        exchange = provider.endpoint.prepare(form)
        exchange.send(deadline=time.monotonic() + 6)

    def refresh() -> None:
        tokens.get(grant_id, TokenParameters(force_renewal=True))

    took = interleaved({"bare": bare, "refresh": refresh}, rounds=15, calls=20)
    for name, microseconds in took.items():
        print(f"  {name:8} {microseconds:8.1f} us")
    return [
        ("operations of the store that a refresh adds", more_calls, 2),
        ("milliseconds that a refresh adds", (took["refresh"] - took["bare"]) / 1000, 1.0),
    ]


if __name__ == "__main__":
    if "--serve" in sys.argv:
        asyncio.run(serve())
    else:
        for what, figure, limit in measure():
            print(f"{what}: {figure:.2f} (limit {limit})")
