"""Run all benchmarks and print each figure beside its limit; exit 1 where one is above it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import api_call, imports, proxies, redis_store, refresh


def main() -> int:
    above = False
    for part in (proxies, api_call, refresh, redis_store, imports):
        print(part.__name__)
        for what, figure, limit in part.measure():
            above = above or figure > limit
            print(f"{'ABOVE' if figure > limit else 'ok':5} {what}: {figure:.2f} (limit {limit})")
    return int(above)


if __name__ == "__main__":
    raise SystemExit(main())
