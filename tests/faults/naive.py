"""How not to do it: what the harness has to find out.

Each of these keeps one token response per grant in a file and renews it when it has expired, as
many applications do. They are as correct as their idea allows.
"""

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from tests.faults.driver import Get

__all__ = ["LeaseWithoutWindow", "LockWithoutSecondLook", "Naive", "ThreadLockOnly"]

Tokens = dict[str, Any]
LEASE = 1.0


@dataclass(frozen=True, kw_only=True)
class Naive:
    """Whoever finds an expired token renews it.

    :param folder: holds the token responses, by grant.
    :param token_endpoint: its URL.
    """

    folder: Path
    token_endpoint: str

    def sign_in(self, grant_id: str, response: Tokens) -> None:
        """Save a token response that has expired already."""
        self._save(grant_id, response | {"expires_at": 0.0})

    def __call__(self, checkpoint: Callable[[str], None]) -> Get:
        return lambda grant_id: self._get(grant_id, checkpoint)

    def _get(self, grant_id: str, checkpoint: Callable[[str], None]) -> str:
        tokens = self._load(grant_id)
        if not _is_fresh(tokens):
            tokens = self._renew(grant_id, tokens, checkpoint)
        return str(tokens["access_token"])

    def _load(self, grant_id: str) -> Tokens:
        tokens: Tokens = json.loads((self.folder / grant_id).read_text())
        return tokens

    def _save(self, grant_id: str, tokens: Tokens) -> None:
        path = self.folder / f"{grant_id}.{os.getpid()}.{threading.get_ident()}"
        path.write_text(json.dumps(tokens))
        path.replace(self.folder / grant_id)

    def _renew(self, grant_id: str, tokens: Tokens, checkpoint: Callable[[str], None]) -> Tokens:
        checkpoint("write")
        form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
        answer = requests.post(self.token_endpoint, form, auth=("app", "secret"), timeout=10)
        answer.raise_for_status()
        checkpoint("answered")
        renewed: Tokens = answer.json()
        renewed["expires_at"] = time.time() + renewed["expires_in"]
        self._save(grant_id, tokens | renewed)
        return renewed


@dataclass(frozen=True, kw_only=True)
class ThreadLockOnly(Naive):
    """One thread of a process at a time, with a second look."""

    def __call__(self, checkpoint: Callable[[str], None]) -> Get:
        lock = threading.Lock()

        def get(grant_id: str) -> str:
            with lock:
                return self._get(grant_id, checkpoint)

        return get


@dataclass(frozen=True, kw_only=True)
class LockWithoutSecondLook(Naive):
    """One process at a time, but each of them does what it came for."""

    def _renew(self, grant_id: str, tokens: Tokens, checkpoint: Callable[[str], None]) -> Tokens:
        with self._locked(grant_id):
            return Naive._renew(self, grant_id, tokens, checkpoint)

    @contextlib.contextmanager
    def _locked(self, grant_id: str) -> Iterator[None]:
        with (self.folder / f"{grant_id}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@dataclass(frozen=True, kw_only=True)
class LeaseWithoutWindow(Naive):
    """A lock that ends by itself, as ``redis.lock.Lock`` does, and a second look under it.

    Whoever is stopped between the look and the write sends what somebody else has spent.
    """

    def _renew(self, grant_id: str, tokens: Tokens, checkpoint: Callable[[str], None]) -> Tokens:
        while not self._take(grant_id):
            time.sleep(0.02)
        try:
            tokens = self._load(grant_id)
            if _is_fresh(tokens):
                return tokens
            return Naive._renew(self, grant_id, tokens, checkpoint)
        finally:
            (self.folder / f"{grant_id}.lease").unlink(missing_ok=True)

    def _take(self, grant_id: str) -> bool:
        path = self.folder / f"{grant_id}.lease"
        with (self.folder / f"{grant_id}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                # It may be given back at any moment.
                if time.time() - path.stat().st_mtime < LEASE:
                    return False
            path.touch()
            return True


def _is_fresh(tokens: Tokens) -> bool:
    return bool(tokens["expires_at"] > time.time())
