"""What this process remembers of a token endpoint that fails, so that it does not ask in vain."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from flask_atm.errors import ATMError, TokenEndpointError
from flask_atm.grants.parameters import EngineParameters
from flask_atm.grants.single_flight import ProcessLock

__all__ = ["Breaker", "Refusals", "again"]

log = logging.getLogger("flask_atm.endpoint")

_REMEMBERED = 1024
E = TypeVar("E", bound=ATMError)


def again(error: E) -> E:
    """Give the same error once more, for another thread or for later.

    Without the frames of the first one, which would keep alive what they hold; and without calling
    a constructor of its own.
    """
    twin = type(error).__new__(type(error))
    twin.args = error.args
    twin.__dict__.update(error.__dict__)
    return twin


class Breaker:
    """Opens after failures in a row at one endpoint; then one attempt per pause. Thread-safe.

    :param name: for the log.
    :param monotonic: a clock that never jumps.
    """

    def __init__(
        self,
        name: str,
        parameters: EngineParameters,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._parameters = parameters
        self._monotonic = monotonic
        self._lock = ProcessLock()
        self._failures = 0
        self._pause = 0.0
        self._until = 0.0
        self._lent = 0.0
        self._last_error_log = -60.0
        self._refusal: TokenEndpointError | None = None
        self.last: str = "unused"

    def left(self) -> float:
        """Give the seconds until the next attempt, or 0."""
        return max(0.0, self._until - self._monotonic()) if self._until else 0.0

    def enter(self) -> bool:
        """Ask for an attempt: with the breaker open, one per pause gets it."""
        with self._lock:
            if self.left():
                return False
            if self._pause:
                self._until = self._lent = self._monotonic() + self._pause
            return True

    def withdraw(self) -> None:
        """Nothing was sent after all: let another one try, unless more is known since."""
        with self._lock:
            if self._until == self._lent:
                self._until = 0.0

    def succeeded(self) -> None:
        """The endpoint answered."""
        with self._lock:
            self._failures, self._pause, self._until, self.last = 0, 0.0, 0.0, "ok"
            self._refusal = None

    def failed(self, reason: str) -> None:
        """The endpoint gave no usable answer."""
        with self._lock:
            self._failures += 1
            self._refusal, self._lent = None, 0.0
            self.last = reason
            if self._failures >= self._parameters.breaker_failures:
                self._pause = self._parameters.breaker_pause
                self._until = self._monotonic() + self._pause

    def refusal(self, provider: str) -> TokenEndpointError | None:
        """Give what the server said of the registration, while that is why nobody is let through.

        :param provider: who asks: a registration may have several names.
        """
        refusal = self._refusal
        if refusal is None or not self.left():
            return None
        twin = again(refusal)
        twin.provider = provider
        return twin

    def refused_client(self, error: TokenEndpointError) -> None:
        """The server does not accept this registration: nothing will work until that is mended."""
        with self._lock:
            now = self._monotonic()
            self._pause = self._parameters.client_pause
            self._until = now + self._pause
            self._refusal, self._lent = again(error), 0.0
            self.last = error.error
            complain = now - self._last_error_log >= 60.0
            if complain:
                self._last_error_log = now
        if complain:
            log.error(
                "the token endpoint of %r answers %s: check the client id, the secret and the"
                " authentication method (ATM_CLIENT_ID, ATM_CLIENT_SECRET, ATM_CLIENT_AUTH)."
                " Nobody is signed out because of it",
                self._name,
                error.error,
            )


class Refusals:
    """Parameters that a server refused: not tried again for a while. Thread-safe."""

    def __init__(self, pause: float, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._pause = pause
        self._monotonic = monotonic
        self._errors: dict[tuple[str, str], tuple[ATMError, float]] = {}

    def remember(self, key: str, slot: str, error: ATMError, pause: float | None = None) -> None:
        """Remember that these parameters of this grant were refused."""
        if len(self._errors) >= _REMEMBERED:
            self._errors.clear()
        self._errors[key, slot] = (again(error), self._monotonic() + (pause or self._pause))

    def get(self, key: str, slot: str) -> ATMError | None:
        """Give the error of a refusal that still counts."""
        error, until = self._errors.get((key, slot), (None, 0.0))
        return again(error) if error is not None and self._monotonic() < until else None
