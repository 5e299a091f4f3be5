"""A worker process as a server of applications runs it: it has atexit, and SIGTERM means to end.

``python -m tests.faults.worker`` with a line of JSON on its standard input. It says at which point
it stands, and what it got; a further line lets it go on.
"""

import json
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

from flask_atm.grants.parameters import EngineParameters
from tests.faults.engines import FlaskATM
from tests.grants.support import Setup

__all__: list[str] = []


def say(what: str) -> None:
    # Not by print: a signal handler must not find its buffer in use.
    os.write(sys.stdout.fileno(), f"{what}\n".encode())


def end(number: int, frame: FrameType | None) -> None:
    """As gunicorn's and uWSGI's handlers do: the main thread unwinds."""
    say("ends")
    sys.exit(0)


def main() -> None:
    told: dict[str, Any] = json.loads(sys.stdin.readline())
    go = threading.Event()

    def checkpoint(point: str) -> None:
        if point == told["stop_at"]:
            say(f"at {point}")
            go.wait()

    setup = Setup(config=told["config"], ahead=told["ahead"], engine=EngineParameters())
    get = FlaskATM(setup=setup)(checkpoint)

    def listen() -> None:
        if sys.stdin.readline():
            go.set()

    threading.Thread(target=listen, daemon=True).start()
    signal.signal(signal.SIGTERM, end)
    if told["in_a_thread"]:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: say(get(told["grant_id"])))
            threading.Event().wait()
    say(get(told["grant_id"]))
    threading.Event().wait()


if __name__ == "__main__":
    main()
