"""What the fake provider and the fake API have in common: they run, go down, and misbehave."""

from types import TracebackType
from typing import TYPE_CHECKING, Self

from flask_atm.testing.faults import Faults
from flask_atm.testing.server import LoopbackServer

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["FakeServer"]


class FakeServer:
    """A server on 127.0.0.1, on threads of its own; a context manager. Thread-safe.

    :param app: the application that it serves.
    :param port: the port, or 0 to let the system choose one.
    """

    def __init__(self, app: "WSGIApplication", *, port: int = 0) -> None:
        self._faults = Faults()
        self._http = LoopbackServer(app, port=port)

    def start(self) -> Self:
        """Accept requests; after :meth:`stop` on the same port, with all memories."""
        self._faults.reopen()
        self._http.start()
        return self

    def stop(self) -> None:
        """Go down: connections are cut and refused until :meth:`start`, memories stay."""
        self._http.stop()
        self._faults.close()

    def close(self) -> None:
        """Stop for good."""
        self._http.close()
        self._faults.close()

    def recover(self) -> None:
        """Forget the failures to come."""
        self._faults.clear()

    def release(self) -> None:
        """Send the answers held back, and hold back no more."""
        self._faults.release()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._http.url}>"
