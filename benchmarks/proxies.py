"""What ``current_user_token`` costs: a second time in a request, and the first time.

Run it with ``python -m benchmarks.proxies``. The second time is measured against
``flask.request.method``, the first one, with SQLite and sealing, against what cannot be left out:
a select, the opening of the seal and ``json.loads``.
"""

import json
import sqlite3
from pathlib import Path

from flask import request

from benchmarks.setting import interleaved, signed_in
from flask_atm import current_user_token
from flask_atm.globals import forget_looked_up
from flask_atm.grants.vault import record_key

__all__ = ["measure"]


def measure() -> list[tuple[str, float, float]]:
    """Give ``(what, ratio, limit)``."""
    with signed_in() as (_, state, grant_id):
        key = record_key(grant_id)
        path = Path(str(state.config.store).removeprefix("sqlite:///"))
        connection = sqlite3.connect(path)
        vault = state.provider().tokens.vault

        def least() -> None:
            select = "SELECT sealed, sealed_version FROM flask_atm_grants WHERE key = ?"
            sealed, version = connection.execute(select, (key,)).fetchone()
            bound = vault._bound(version)
            json.loads(state.ring.open(sealed, purpose="grant", record=key, bound=bound))

        def first() -> None:
            forget_looked_up()
            _ = current_user_token.value

        def again() -> None:
            _ = current_user_token.value

        def method() -> None:
            _ = request.method

        took = interleaved(
            {"least": least, "first": first, "again": again, "method": method},
            rounds=41,
            calls=300,
        )
        connection.close()
    for name, microseconds in took.items():
        print(f"  {name:8} {microseconds:8.2f} us")
    return [
        ("current_user_token again / request.method", took["again"] / took["method"], 3.0),
        ("current_user_token first / select + open + loads", took["first"] / took["least"], 4.0),
    ]


if __name__ == "__main__":
    for what, ratio, limit in measure():
        print(f"{what}: {ratio:.2f} (limit {limit})")
