"""What a fake server does wrong, on demand: failures, delays, and answers that are held back."""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from threading import Condition
from types import TracebackType
from typing import Any, Final, Self

from flask import Flask, Response, g, request

from flask_atm.testing.server import CUT

__all__ = ["Body", "Fault", "Faults", "Hold", "install"]

#: What :class:`Fault` answers with: mappings and lists are sent as JSON.
Body = str | bytes | Mapping[str, Any] | list[Any]

_LONGEST_HOLD: Final = 120.0


@dataclass(kw_only=True, slots=True)
class Fault:
    """One thing to go wrong.

    :param endpoint: where.
    :param status: the status of the answer; ``None``: the connection is cut without one; 200
        without a body: the right answer, late by ``delay``.
    :param times: how often; ``None``: until recovery.
    :param body: the body of the answer.
    :param headers: further headers of the answer.
    :param delay: seconds to wait before the answer.
    :param processed: the request takes effect, and only its answer is replaced.
    """

    endpoint: str
    status: int | None = 503
    times: int | None = 1
    body: Body | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    processed: bool = False

    @property
    def only_late(self) -> bool:
        """Whether the right answer is given."""
        return self.status == 200 and self.body is None

    def response(self) -> Response:
        """Build the answer."""
        status = self.status or 500
        body = f"{status}, as the test asked for.\n" if self.body is None else self.body
        if isinstance(body, str | bytes):
            response = Response(body, status, mimetype="text/plain")
        else:
            response = Response(json.dumps(body), status, mimetype="application/json")
        response.headers.update(dict(self.headers))
        return response


class Faults:
    """The faults to come and the answers held back, of one server. Thread-safe."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._queue: list[Fault] = []
        self._hold: Hold | None = None
        self._closed = False

    def add(self, fault: Fault) -> None:
        """Let the next requests fail."""
        with self._changed:
            self._queue.append(fault)

    def take(self, endpoint: str) -> Fault | None:
        """Give the fault for a request that has just come in."""
        with self._changed:
            fault = next((fault for fault in self._queue if fault.endpoint == endpoint), None)
            if fault is not None and fault.times is not None:
                fault.times -= 1
                if fault.times < 1:
                    self._queue.remove(fault)
            return fault

    def clear(self) -> None:
        """Forget all faults."""
        with self._changed:
            self._queue.clear()

    def hold(self, endpoint: str) -> "Hold":
        """Hold back the answers of an endpoint from now on."""
        with self._changed:
            self._hold = Hold(endpoint, self.release, self._changed)
            self._changed.notify_all()
            return self._hold

    def release(self) -> None:
        """Send the answers held back, and hold back no more."""
        with self._changed:
            self._hold = None
            self._changed.notify_all()

    def close(self) -> None:
        """End all waiting: the server goes."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def reopen(self) -> None:
        """Let there be waiting again: the server has come back."""
        with self._changed:
            self._closed = False

    def pause(self, seconds: float) -> None:
        """Wait, unless the server goes."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed, seconds)

    def pass_gate(self, endpoint: str) -> None:
        """Wait while answers of this endpoint are held back."""
        with self._changed:
            hold = self._hold
            if hold is None or hold.endpoint != endpoint:
                return
            hold.count += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._hold is not hold or self._closed, _LONGEST_HOLD)


class Hold(AbstractContextManager["Hold"]):
    """Answers held back: until the end of a ``with`` block, or until ``release()``.

    :param endpoint: whose answers.
    """

    def __init__(self, endpoint: str, release: Callable[[], None], changed: Condition) -> None:
        self.endpoint = endpoint
        self.count = 0
        self._release = release
        self._changed = changed

    def wait(self, count: int = 1, timeout: float = 10.0) -> None:
        """Wait until so many answers have been held back.

        :param timeout: seconds.
        :raises TimeoutError: there were fewer by then.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.count >= count, timeout):
                raise TimeoutError(f"{self.count} of {count} answers within {timeout} s")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release()


def install(app: Flask, faults: Faults, record: Callable[[int | None], None]) -> None:
    """Let faults happen in an application, by the names of its endpoints.

    :param record: called for every request with the status of its answer, ``None`` for a cut
        connection, once the request has taken effect and before its answer is delayed or held.
    """

    @app.before_request
    def fail() -> Response | None:
        g.fault = fault = faults.take(request.endpoint or "")
        if fault is None or fault.processed or fault.only_late:
            return None
        return fault.response()

    @app.after_request
    def spoil(response: Response) -> Response:
        fault: Fault | None = g.fault
        if fault is not None and fault.processed and not fault.only_late:
            response = fault.response()
        cut = fault is not None and fault.status is None
        request.environ[CUT] = cut
        record(None if cut else response.status_code)
        if fault is not None and fault.delay:
            faults.pause(fault.delay)
        faults.pass_gate(request.endpoint or "")
        return response
