"""What ``import flask_atm`` costs against the libraries that it is made of.

Run it with ``python -m benchmarks.imports``. Whole processes are timed, less an empty one.
"""

import os
import subprocess
import sys
import tempfile
import time
from statistics import median

__all__ = ["measure"]

ROUNDS = 15
CODES = {
    "nothing": "pass",
    "libraries": "import flask, requests, authlib.integrations.flask_client",
    "flask_atm": "import flask_atm",
    "all names": "from flask_atm import *",
}


def _seconds(code: str, folder: str) -> float:
    # As installed: with compiled modules, whatever the environment says of writing them.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    return time.perf_counter() - start


def measure() -> list[tuple[str, float, float]]:
    """Give ``(what, ratio, limit)``."""
    taken: dict[str, list[float]] = {name: [] for name in CODES}
    with tempfile.TemporaryDirectory() as folder:
        for code in CODES.values():
            _seconds(code, folder)
        for _ in range(ROUNDS):
            for name, code in CODES.items():
                taken[name].append(_seconds(code, folder))
    took = {name: median(times) for name, times in taken.items()}
    for name, seconds in took.items():
        print(f"  {name:10} {seconds * 1000:8.1f} ms")
    base = took["libraries"] - took["nothing"]
    # The names are loaded at their first use: that has no limit, but is worth knowing.
    everything = (took["all names"] - took["nothing"]) / base
    print(f"  from flask_atm import * / libraries: {everything:.2f}")
    ratio = (took["flask_atm"] - took["nothing"]) / base
    return [("import flask_atm / import flask, requests, authlib", ratio, 1.25)]


if __name__ == "__main__":
    for what, ratio, limit in measure():
        print(f"{what}: {ratio:.2f} (limit {limit})")
