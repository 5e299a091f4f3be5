"""The demo of flask-atm: ``python examples/demo``, and ``--help`` for what else there is."""

import argparse
import signal
import sys
import webbrowser
from collections.abc import Sequence
from threading import Event
from types import FrameType
from typing import Final, NoReturn

from check import CheckFailed, check
from stage import Stage, set_up

__all__ = ["main"]

_BANNER: Final = """
  flask-atm, the demo

    open       {url}
    users      Alice and Bob: the provider only asks which of them you are
    token      lives {lifetime} seconds
    provider   {issuer}
    API        {api}

  Ctrl-C stops all of it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; give the exit code."""
    options = _parse(arguments)
    lifetime: int = options.lifetime or (4 if options.check else 30)
    _stop_on_signals()
    status = 0
    try:
        with set_up(lifetime=lifetime) as stage:
            if options.check:
                status = _check(stage)
            else:
                _show(stage, lifetime, browser=options.open)
                Event().wait()
    except KeyboardInterrupt:
        print("\n  Stopped.")
        status = int(options.check)
    return status


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo", description="Runs the demo until Ctrl-C.")
    parser.add_argument("--check", action="store_true", help="try everything over HTTP, and exit")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument(
        "--lifetime",
        type=_seconds,
        metavar="SECONDS",
        help="how long an access token lives (30, with --check 4)",
    )
    return parser.parse_args(arguments)


def _seconds(text: str) -> int:
    value = int(text)
    if not 3 <= value <= 3600:
        raise argparse.ArgumentTypeError("has to be 3 to 3600 seconds")
    return value


def _stop_on_signals() -> None:
    """Let Ctrl-C and SIGTERM end everything once: tox sends both, and again and again."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)


def _show(stage: Stage, lifetime: int, *, browser: bool) -> None:
    print(
        _BANNER.format(
            url=stage.url,
            lifetime=lifetime,
            issuer=stage.provider.issuer,
            api=stage.api.base_url,
        ),
        flush=True,
    )
    if browser:
        webbrowser.open(stage.url)


def _check(stage: Stage) -> int:
    try:
        check(stage.url)
    except CheckFailed as failure:
        print(f"\nFAILED: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
