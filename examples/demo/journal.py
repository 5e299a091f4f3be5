"""What the extension does, for people to read: its signals, its log, and its calls of the API."""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count
from threading import Lock
from typing import Any, Final, Literal

from blinker import Signal
from flask import Flask

from flask_atm import signals

__all__ = ["Journal"]

#: Who tells: the visitor pressed a button, a signal was sent, a line logged, an API called.
Source = Literal["you", "signal", "log", "api"]
Level = Literal["good", "info", "bad"]

_KEPT: Final = 80
_CALLS: Final = "urllib3.connectionpool"


@dataclass(kw_only=True, slots=True)
class _Entry:
    """Something that happened, and how many times in a row."""

    number: int
    source: Source
    level: Level
    text: str
    at: float
    times: int = 1


class Journal:
    """The last things that happened. Thread-safe.

    :param api_port: calls of this port are calls of the API.
    """

    def __init__(self, *, api_port: int) -> None:
        self._lock = Lock()
        self._entries: deque[_Entry] = deque(maxlen=_KEPT)
        self._numbers = count(1)
        _listen("flask_atm", self._log_line)
        _listen(_CALLS, lambda record: self._api_call(record, api_port))

    def add(self, source: Source, text: str, level: Level = "info") -> None:
        """Write down what happened; the same once more only counts."""
        with self._lock:
            last = self._entries[-1] if self._entries else None
            if last is not None and (last.source, last.text) == (source, text):
                last.times, last.at = last.times + 1, time.time()
                return
            self._entries.append(
                _Entry(
                    number=next(self._numbers),
                    source=source,
                    level=level,
                    text=text,
                    at=time.time(),
                )
            )

    def latest(self) -> list[dict[str, Any]]:
        """Give all that is kept, newest first."""
        with self._lock:
            return [asdict(entry) for entry in reversed(self._entries)]

    def watch(self, app: Flask) -> None:
        """Write down the signals that the extension sends in an application."""
        for signal, level, tell in _SIGNALS:
            self._watch(app, signal, level, tell)

    def _watch(self, app: Flask, signal: Signal, level: Level, tell: "_Tell") -> None:
        def receive(sender: Flask, **details: Any) -> None:
            self.add("signal", tell(details), level)

        signal.connect(receive, app, weak=False)

    def _log_line(self, record: logging.LogRecord) -> None:
        level: Level = "bad" if record.levelno >= logging.WARNING else "info"
        name = record.name.removeprefix("flask_atm.")
        self.add("log", f"{name}: {record.getMessage()}", level)

    def _api_call(self, record: logging.LogRecord, api_port: int) -> None:
        if not isinstance(record.args, tuple) or len(record.args) < 7:
            return
        _, _, port, method, path, _, status, *_ = record.args
        if port == api_port:
            level: Level = "bad" if status == 401 else "good"
            self.add("api", f"{method} {path} answered {status}", level)


_Tell = Callable[[dict[str, Any]], str]

_SIGNALS: Final[tuple[tuple[Signal, Level, _Tell], ...]] = (
    (signals.user_logged_in, "good", lambda d: f"{_name(d)} signed in."),
    (signals.user_logged_out, "info", lambda d: f"{_name(d)} signed out."),
    (signals.token_refreshed, "good", lambda d: f"The token of {_name(d)} was renewed."),
    (signals.token_refresh_failed, "bad", lambda d: f"No new token: {_text(d['error'])}"),
    (signals.grant_revoked, "bad", lambda d: f"The provider ended the sign-in of {_name(d)}."),
    (signals.login_failed, "bad", lambda d: f"A sign-in failed: {_text(d['error'])}"),
)


def _name(details: dict[str, Any]) -> str:
    claims = details["claims"]
    return str(claims.get("name") or claims.get("sub") or "somebody")


def _text(error: Exception) -> str:
    return str(getattr(error, "description", None) or error)


class _Listener(logging.Handler):
    """Hands records on."""

    def __init__(self, receive: Callable[[logging.LogRecord], None]) -> None:
        super().__init__()
        self._receive = receive

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record on."""
        self._receive(record)


def _listen(name: str, receive: Callable[[logging.LogRecord], None]) -> None:
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.addHandler(_Listener(receive))
