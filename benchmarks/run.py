"""Run all benchmarks and print each figure beside its limit; exit 1 where one is above it.

``--grants 1000000`` fills the stores with a million grants in place of 100,000.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import api_call, growth, imports, many_grants, proxies, redis_store, refresh

SMALL = (proxies, api_call, refresh, imports)
#: Those that fill a store first.
LARGE = (redis_store, many_grants, growth)


def _show(figures: Sequence[tuple[str, float, float]]) -> bool:
    """Print figures; tell whether one is above its limit."""
    for what, figure, limit in figures:
        print(f"{'ABOVE' if figure > limit else 'ok':5} {what}: {figure:.2f} (limit {limit})")
    return any(figure > limit for _, figure, limit in figures)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grants", type=int, default=many_grants.MANY)
    grants = parser.parse_args().grants
    above = False
    for small in SMALL:
        print(small.__name__)
        above |= _show(small.measure())
    for large in LARGE:
        print(large.__name__)
        above |= _show(large.measure(grants))
    return int(above)


if __name__ == "__main__":
    raise SystemExit(main())
