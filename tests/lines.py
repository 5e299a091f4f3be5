"""Which line of the requirements runs on which store: read off the names of the tests.

A test that is named after a line runs on the stores of its file, as ``RUNS_ON`` tells. The table in
``README.rst`` is what comes of that; write it anew with::

    python -m tests.lines
"""

import ast
import re
from collections import defaultdict
from pathlib import Path

__all__ = ["BEGIN", "END", "EVIDENCE", "README", "RUNS_ON", "STORES", "shown", "table"]

TESTS = Path(__file__).parent
README = TESTS / "README.rst"
BEGIN, END = ".. lines by store: begin\n", ".. lines by store: end\n"
STORES = ("memory", "sqlite", "redis", "postgresql", "mariadb", "session", "cache", "own")

_HERE = "memory sqlite redis"
#: By file, or by file and the first word of the tests; the longest one that fits counts.
RUNS_ON = {
    "faults/test_killed.py": "sqlite redis postgresql",
    "faults/test_stopped.py": "sqlite redis postgresql",
    "faults/test_terminated.py": "sqlite",
    "grants/test_clocks.py": f"{_HERE} postgresql",
    "grants/test_copies.py": "own",
    "grants/test_endpoint_down.py": "memory",
    "grants/test_herd.py": "sqlite redis",
    "grants/test_idle.py": f"{_HERE} postgresql",
    "grants/test_key_ring.py": f"{_HERE} postgresql",
    "grants/test_lost_answers.py": f"{_HERE} postgresql",
    "grants/test_mass_ending.py": f"{_HERE} postgresql",
    "grants/test_mass_ending.py::test_i5_": "sqlite redis postgresql",
    "grants/test_mass_ending.py::test_i6_": "sqlite redis postgresql",
    "grants/test_mass_ending.py::test_i7_": f"{_HERE} postgresql",
    "grants/test_plain_stores.py": "session cache own",
    "grants/test_redis_grants.py": "redis",
    "grants/test_redis_outage.py": "redis",
    "grants/test_redis_store.py": "redis",
    "grants/test_single_flight.py": f"{_HERE} postgresql",
    "grants/test_single_flight.py::test_a15_": "sqlite",
    "grants/test_single_flight_across_processes.py": "sqlite",
    "grants/test_single_flight_across_processes.py::test_a11_": "sqlite redis postgresql",
    "grants/test_sql_faults.py": "postgresql",
    "grants/test_sql_grants.py": "postgresql",
    "grants/test_sql_processes.py": "postgresql",
    "grants/test_sql_store.py": "postgresql",
    "grants/test_sqlite.py": "sqlite",
    "grants/test_stores.py": "sqlite",
    "grants/test_stores.py::StoreContract": "memory sqlite",
    "grants/test_vault.py": "memory",
    "grants/test_vault.py::test_m6_": "sqlite",
    "system/test_mariadb.py": "mariadb",
    "system/test_pgbouncer.py": "postgresql",
    "test_dumps.py": "sqlite redis postgresql session cache",
    "top/test_pairing.py": "session cache own",
    "top/test_session_mode.py": "session",
}
#: What the text of a file has to have, if its tests run on a store.
EVIDENCE = {
    "memory": r"MemoryStore|make_world\(|\bany_store\b|\"memory\"",
    "sqlite": r"(?i)sqlite|\bany_store\b|\bplace: Place\b",
    "redis": r"Redis|\bany_store\b|\"redis\"",
    "postgresql": r"(?i)postgres|\bany_store\b",
    "mariadb": r"MariaDB",
    "session": r"\"session\"|SessionStore",
    "cache": r"Cache",
    "own": r"DictStore|Plain",
}


def _tests(path: Path) -> list[str]:
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [node.name for node in nodes if isinstance(node, kinds) and node.name[:5] == "test_"]


def lines_of(name: str) -> list[str]:
    """Give the lines that a test is named after: ``test_c2_a23_…``, ``test_b1a_…``."""
    found = []
    for word in name.split("_")[1:]:
        match = re.fullmatch(r"([a-dijkm])([1-9]\d?)[ab]?", word)
        if match is None:
            break
        found.append(f"{match[1].upper()}{match[2]}")
    return found


def shown() -> dict[str, set[str]]:
    """Give the stores by line."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for file in sorted({key.partition("::")[0] for key in RUNS_ON}):
        path = TESTS / file
        for name in _tests(path):
            fitting = [key for key in RUNS_ON if f"{file}::{name}".startswith(key)]
            for line in lines_of(name):
                found[line].update(RUNS_ON[max(fitting, key=len)].split())
        if "StoreContract)" in path.read_text("utf-8"):
            stores = RUNS_ON.get(f"{file}::StoreContract", RUNS_ON[file])
            found["C12"].update(stores.split())
    return dict(found)


def table() -> str:
    """Give the table as the README has it."""
    found = shown()
    wide = max(map(len, STORES))
    rule = " ".join(["====", *["=" * wide] * len(STORES)]) + "\n"
    rows = [" ".join(["line", *[store.ljust(wide) for store in STORES]]).rstrip()]
    for line in sorted(found, key=lambda line: (line[0], int(line[1:]))):
        cells = [("x" if store in found[line] else ".").ljust(wide) for store in STORES]
        rows.append(" ".join([line.ljust(4), *cells]).rstrip())
    return f"\n{rule}{rows[0]}\n{rule}" + "".join(f"{row}\n" for row in rows[1:]) + f"{rule}\n"


if __name__ == "__main__":
    before, _, rest = README.read_text("utf-8").partition(BEGIN)
    README.write_text(f"{before}{BEGIN}{table()}{END}{rest.partition(END)[2]}", "utf-8")
