"""Run the measurements of this folder, each in a fresh process.

``python tools/bench/run.py`` runs all, ``python tools/bench/run.py import_time pipe`` those named. A
measurement is a script that prints its figures and exits with 1 when one misses its bound, or
with 77 when it can't measure anything here.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SKIPPED = 77


def main(wanted: list[str]) -> int:
    """Run the wanted measurements; return 1 when one failed, 2 for an unknown name."""
    known = {p.stem: p for p in sorted(HERE.glob("*.py")) if p.stem != "run" and p.stem[0] != "_"}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        print(f"no measurement called {', '.join(unknown)}; there are: {', '.join(known)}")
        return 2
    failed: list[str] = []
    skipped: list[str] = []
    for name in wanted or known:
        print(f"\n== {name}", flush=True)
        code = subprocess.run([sys.executable, str(known[name])], check=False).returncode
        if code:
            (skipped if code == SKIPPED else failed).append(name)
    print()
    if failed:
        print(f"missed their bounds: {', '.join(failed)}")
    if skipped:
        print(f"skipped, nothing measured: {', '.join(skipped)}")
    if not failed and len(skipped) < len(wanted or known):
        print(f"all {'the others ' if skipped else ''}are within their bounds")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
